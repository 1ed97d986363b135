//! EP-context models: ONNX files that onnxruntime's TensorRT provider has compiled, which `fgclip-rt build --backend
//! onnxruntime-tensorrt` puts below a bundle's `engines/`. One takes one number of patches or tokens, in a range of
//! batches.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::bundle::{unreadable, Bundle, Check};
use crate::decode::{list_of, optional, strict, whole, Decode, Node, Ordered};
use crate::device::Gpu;
use crate::error::{Error, Result, Status};
use crate::interface::Graph;
use crate::manifest::FileInfo;

/// Folder of a bundle's engines.
const FOLDER: &str = "engines";
/// File in each of its folders that says what lies there.
const RECORD: &str = "engine.json";
const FORMAT: &str = "fgclip-rt-engine";
const FORMAT_VERSION: u64 = 1;
/// The library that builds EP-context models; engines of others are for the Python package.
const LIBRARY: &str = "onnxruntime-tensorrt";
/// The way that this version makes networks, as the Python package's `RECIPE`.
const RECIPE: u64 = 3;

const MOST: u64 = i64::MAX as u64;

strict! {
    /// Shapes of an input: the smallest, the one that kernels are chosen for, and the largest.
    pub struct Profile {
        /// Smallest.
        min: Vec<u64> = list_of(whole(0, MOST)),
        /// Usual.
        opt: Vec<u64> = list_of(whole(0, MOST)),
        /// Largest.
        max: Vec<u64> = list_of(whole(0, MOST)),
    }

    /// The library that built an engine, and the only one that runs it.
    pub struct Library {
        /// Its name.
        name: String,
        /// Its version.
        version: String,
    }

    /// All that an engine depends on.
    pub struct Key {
        /// Name of the graph.
        graph: String,
        /// One of the bundle's precisions.
        precision: String,
        /// Digest of the graph's file and of each file of weights.
        files: Ordered<String>,
        /// The library.
        library: Library,
        /// Compute capabilities that it runs on, such as `sm89`.
        targets: Vec<String>,
        /// Name of the GPU that it was tuned on.
        gpu: Option<String>,
        /// Profile of each input.
        profiles: Ordered<Profile>,
        /// Whether it lacks its weights.
        stripped: bool,
        /// The builder's [`RECIPE`].
        recipe: u64 = whole(0, MOST),
    }

    /// The whole `engine.json`.
    pub struct Record {
        /// [`FORMAT`].
        format: String,
        /// [`FORMAT_VERSION`].
        format_version: u64 = whole(FORMAT_VERSION, FORMAT_VERSION),
        /// All that it depends on.
        key: Key,
        /// Digest of the key.
        sha256: String,
        /// Name of the file to load.
        plan: String,
        /// Size and digest of every other file in the folder.
        files: Ordered<FileInfo>,
        /// Seconds that the build took.
        seconds: f64,
        /// Number of layers.
        layers: Option<u64> = optional(whole(0, MOST)),
    }
}

/// An EP-context model that can be run here.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    /// Name of its folder.
    pub name: String,
    /// The file to load.
    pub plan: PathBuf,
    /// Its graph.
    pub graph: Graph,
    /// Number of patches or tokens that it takes.
    pub length: u64,
    /// Fewest and most images or texts that it takes.
    pub batch: (u64, u64),
}

impl Engine {
    /// Whether it takes a batch, if inputs are padded to its length.
    pub fn takes(&self, graph: Graph, count: u64, length: u64) -> bool {
        let fits = if graph == Graph::Text { length == self.length } else { length <= self.length };
        graph == self.graph && fits && (self.batch.0..=self.batch.1).contains(&count)
    }
}

/// The engines of a bundle that fit, the shortest first; or the reason why none does, as part of a sentence.
pub fn find(
    bundle: &Bundle,
    check: Check,
    precision: &str,
    onnxruntime: &str,
    gpu: Option<&Gpu>,
) -> Result<std::result::Result<Vec<Engine>, String>> {
    let mut reason = "the bundle has no EP-context models".to_owned();
    let mut found = Vec::new();
    for (name, record) in records(bundle)? {
        let Some(graph) = towers().find(|graph| graph.name() == record.key.graph) else { continue };
        if record.key.library.name != LIBRARY || !serves(bundle, &record.key, precision) {
            continue;
        }
        if let Some(problem) = misfit(bundle, &record.key, onnxruntime, gpu) {
            reason = format!("the EP-context model {name} does not fit, because {problem}");
            continue;
        }
        found.push(checked(bundle, check, graph, name, &record)?);
    }
    found.sort_by_key(|engine| (engine.length, u64::MAX - engine.batch.1));
    Ok(if found.is_empty() { Err(reason) } else { Ok(found) })
}

/// The graphs whose engines are run. Those of boxes and masks take microseconds, and run as any graph.
fn towers() -> impl Iterator<Item = Graph> {
    [Graph::Vision, Graph::Dense, Graph::Text].into_iter()
}

/// The engines' records with the names of their folders, in order.
fn records(bundle: &Bundle) -> Result<Vec<(String, Record)>> {
    let folder = bundle.file(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(&folder, &error)),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        // An unfinished build has a hidden name.
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names.into_iter().map(|name| read(bundle, &name).map(|record| (name, record))).collect()
}

fn read(bundle: &Bundle, name: &str) -> Result<Record> {
    let place = format!("{FOLDER}/{name}/{RECORD}");
    let text = bundle.read(&place)?;
    let decoded = serde_json::from_slice::<Value>(&text)
        .map_err(|error| error.to_string())
        .and_then(|value| Record::decode(&Node::root(&value)));
    match decoded {
        Ok(record) if record.format == FORMAT => Ok(record),
        Ok(record) => Err(damaged(bundle, &place, &format!("its format is {:?}", record.format))),
        Err(fault) => Err(damaged(bundle, &place, &fault)),
    }
}

fn damaged(bundle: &Bundle, place: &str, fault: &str) -> Error {
    let message = format!(
        "{} is not as specified ({fault}); build it again with 'fgclip-rt build', or remove its folder.",
        bundle.file(place).display()
    );
    Error::new(Status::BundleInvalid, message)
}

/// Whether an engine's graph is, in this precision, the file that it was built from.
fn serves(bundle: &Bundle, key: &Key, precision: &str) -> bool {
    let graph = bundle.manifest.graph(&key.graph, precision);
    key.precision == precision || graph.is_some_and(|graph| key.files.has(&graph.file))
}

/// The reason why an engine does not fit, as part of a sentence.
fn misfit(bundle: &Bundle, key: &Key, onnxruntime: &str, gpu: Option<&Gpu>) -> Option<String> {
    if key.recipe != RECIPE {
        return Some(format!("it was built in the way of another fgclip-rt (recipe {}, here {RECIPE})", key.recipe));
    }
    let listed =
        |name: &str, digest: &String| bundle.manifest.files.get(name).is_some_and(|file| file.sha256 == *digest);
    if let Some((name, _)) = key.files.iter().find(|(name, digest)| !listed(name, digest)) {
        return Some(format!("it was built from another bundle, whose {name} differs"));
    }
    if key.library.version != onnxruntime {
        return Some(format!("it was built with onnxruntime {}, and this is {onnxruntime}", key.library.version));
    }
    let Some(gpu) = gpu else { return Some("there is no NVIDIA GPU".into()) };
    if !key.targets.contains(&gpu.capability) {
        return Some(format!("it was built for {}, and this GPU is {gpu}", key.targets.join(", ")));
    }
    let tuned = key.gpu.as_ref().filter(|name| **name != gpu.name);
    tuned.map(|name| format!("it was tuned on {name}, and this GPU is {gpu}"))
}

fn checked(bundle: &Bundle, check: Check, graph: Graph, name: String, record: &Record) -> Result<Engine> {
    let place = |file: &str| format!("{FOLDER}/{name}/{file}");
    let first = if graph == Graph::Text { "input_ids" } else { "patches" };
    let shapes = record.key.profiles.get(first).filter(|profile| profile.min.len() > 1 && profile.max.len() > 1);
    let Some(shapes) = shapes.filter(|_| record.files.has(&record.plan)) else {
        return Err(damaged(bundle, &place(RECORD), &format!("it lacks the shapes of {first}, or its plan")));
    };
    for (file, info) in record.files.iter() {
        bundle.check_file(&place(file), info, check)?;
    }
    let (length, batch) = (shapes.max[1], (shapes.min[0], shapes.max[0]));
    Ok(Engine { plan: bundle.file(&place(&record.plan)), graph, length, batch, name })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use serde_json::json;

    use super::*;

    const NAME: &str = "vision-fp16-256-onnxruntime-tensorrt-0123456789ab";
    const VERSION: &str = "1.32.0";

    /// The bundle that comes with the Python package, with links as its files, in a folder of its own.
    fn bundle(test: &str) -> Bundle {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fgclip_rt/bundles/fg-clip2-pocket");
        let folder = std::env::temp_dir().join(format!("fgclip-rt-engines-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join(FOLDER).join(NAME)).unwrap();
        for entry in fs::read_dir(shipped.canonicalize().unwrap()).unwrap() {
            let path = entry.unwrap().path();
            symlink(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
        Bundle::open(&folder, Check::Sizes).unwrap()
    }

    fn write(bundle: &Bundle, change: impl FnOnce(&mut Value)) {
        let precision = bundle.precision(None).unwrap();
        let graph = &bundle.manifest.graph("vision", &precision).unwrap().file;
        let digest = |name: &str| bundle.manifest.files.get(name).unwrap().sha256.clone();
        let shape = |count: u64| json!([count, 256, 768]);
        let grids = |count: u64| json!([count, 2]);
        let mut record = json!({
            "format": FORMAT,
            "format_version": 1,
            "key": {
                "graph": "vision",
                "precision": precision,
                "files": { graph: digest(graph) },
                "library": { "name": LIBRARY, "version": VERSION },
                "targets": ["sm89"],
                "gpu": "NVIDIA L4",
                "profiles": {
                    "patches": { "min": shape(1), "opt": shape(8), "max": shape(32) },
                    "spatial_shapes": { "min": grids(1), "opt": grids(8), "max": grids(32) },
                },
                "stripped": false,
                "recipe": RECIPE,
            },
            "sha256": "0123456789ab",
            "plan": "model.onnx",
            "files": { "model.onnx": {
                "size": 4, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            } },
            "seconds": 1.5,
            "layers": null,
        });
        change(&mut record);
        let folder = bundle.file(FOLDER).join(NAME);
        fs::write(folder.join(RECORD), record.to_string()).unwrap();
        fs::write(folder.join("model.onnx"), "test").unwrap();
    }

    fn l4() -> Gpu {
        Gpu { name: "NVIDIA L4".into(), capability: "sm89".into() }
    }

    fn found(bundle: &Bundle, gpu: Option<&Gpu>) -> Result<std::result::Result<Vec<Engine>, String>> {
        find(bundle, Check::Hashes, &bundle.precision(None).unwrap(), VERSION, gpu)
    }

    #[test]
    fn an_engine_that_fits_is_found() {
        let bundle = bundle("fits");
        write(&bundle, |_| {});
        let engines = found(&bundle, Some(&l4())).unwrap().unwrap();
        let plan = bundle.file(FOLDER).join(NAME).join("model.onnx");
        let expected = Engine { name: NAME.into(), plan, graph: Graph::Vision, length: 256, batch: (1, 32) };
        assert_eq!(engines, [expected]);
        fs::remove_dir_all(bundle.path).unwrap();
    }

    #[test]
    fn one_that_does_not_has_a_reason() {
        let bundle = bundle("misfits");
        let other = Gpu { name: "NVIDIA H100".into(), capability: "sm90".into() };
        let slower = Gpu { name: "NVIDIA L40".into(), capability: "sm89".into() };
        type Change = fn(&mut Value);
        let cases: [(Change, Option<Gpu>, &str); 8] = [
            (|record| record["key"]["recipe"] = json!(2), Some(l4()), "another fgclip-rt (recipe 2, here 3)"),
            (
                |record| record["key"]["files"]["vision.onnx"] = json!("0"),
                Some(l4()),
                "another bundle, whose vision.onnx",
            ),
            (|record| record["key"]["library"]["version"] = json!("1.31.0"), Some(l4()), "with onnxruntime 1.31.0"),
            (|_| {}, None, "there is no NVIDIA GPU"),
            (|_| {}, Some(other), "built for sm89, and this GPU is NVIDIA H100 (sm90)"),
            (|_| {}, Some(slower), "tuned on NVIDIA L4, and this GPU is NVIDIA L40 (sm89)"),
            (|record| record["key"]["library"]["name"] = json!("tensorrt"), Some(l4()), "has no EP-context models"),
            (|record| record["key"]["graph"] = json!("region"), Some(l4()), "has no EP-context models"),
        ];
        for (change, gpu, words) in cases {
            write(&bundle, change);
            let reason = found(&bundle, gpu.as_ref()).unwrap().unwrap_err();
            assert!(reason.contains(words), "{reason}");
        }
        fs::remove_dir_all(bundle.file(FOLDER)).unwrap();
        assert_eq!(found(&bundle, Some(&l4())).unwrap().unwrap_err(), "the bundle has no EP-context models");
        fs::remove_dir_all(bundle.path).unwrap();
    }

    #[test]
    fn a_damaged_one_is_refused() {
        let bundle = bundle("damaged");
        type Change = fn(&mut Value);
        let cases: [Change; 6] = [
            |record| record["format"] = json!("other"),
            |record| record["format_version"] = json!(2),
            |record| record["colour"] = json!(1),
            |record| record["key"]["profiles"]["patches"]["max"] = json!([32]),
            |record| record["key"]["profiles"] = json!({}),
            |record| record["plan"] = json!("other.onnx"),
        ];
        for change in cases {
            write(&bundle, change);
            let error = found(&bundle, Some(&l4())).unwrap_err();
            assert_eq!(error.status, Status::BundleInvalid);
            assert!(error.message.contains("engine.json is not as specified"), "{error}");
        }
        write(&bundle, |_| {});
        fs::write(bundle.file(FOLDER).join(NAME).join("model.onnx"), "tent").unwrap();
        assert_eq!(found(&bundle, Some(&l4())).unwrap_err().status, Status::BundleAltered);
        fs::remove_dir_all(bundle.path).unwrap();
    }

    #[test]
    fn an_engine_takes_what_its_shapes_hold() {
        let engine = Engine { name: NAME.into(), plan: "x".into(), graph: Graph::Vision, length: 256, batch: (2, 32) };
        for (graph, count, length, takes) in [
            (Graph::Vision, 2, 256, true),
            (Graph::Vision, 32, 1, true),
            (Graph::Vision, 1, 256, false),
            (Graph::Vision, 33, 256, false),
            (Graph::Vision, 2, 257, false),
            (Graph::Dense, 2, 256, false),
        ] {
            assert_eq!(engine.takes(graph, count, length), takes, "{graph:?} {count} {length}");
        }
        // Padding of a text is read.
        let texts = Engine { graph: Graph::Text, length: 64, ..engine };
        assert!(texts.takes(Graph::Text, 2, 64) && !texts.takes(Graph::Text, 2, 63));
    }
}
