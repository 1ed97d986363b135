//! The manifest of a bundle: the content of `manifest.json`, decoded as strictly as the Python runtime does.
//!
//! The format is specified in the README of fgclip-rt; Python's `fgclip_rt/manifest.py` describes every field.

use std::fmt::Write;

use serde_json::Value;

use crate::decode::{one_of, optional, real, strict, whole, Decode, Decoded, Node, Ordered};
use crate::error::{Error, Result, Status};
use crate::interface;
use crate::messages::{printable, quoted};

/// Marks a manifest as one of ours.
pub const FORMAT: &str = "fgclip-rt-bundle";
/// The only version that this library reads.
pub const FORMAT_VERSION: u64 = 2;
/// Name of the manifest's file.
pub const MANIFEST: &str = "manifest.json";

const MOST_PATCHES: u64 = 1 << 16;
const MOST_TOKENS: u64 = 1 << 15;
const MOST_PIXELS: u64 = 1 << 15;
const MOST_AREA: u64 = 1 << 28;
const MOST_WIDTH: u64 = 1 << 20;
const INT32_MAX: u64 = i32::MAX as u64;
const INT64_MAX: u64 = i64::MAX as u64;

/// Filter of a resize.
pub use crate::patches::Filter;

/// Type that a box's shares of the image are rounded to, before they are multiplied by the grid.
pub use crate::boxes::Shares;

/// What becomes of a logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// The probability of each pair.
    Sigmoid,
    /// The probabilities of the texts of each image.
    Softmax,
}

/// Where weights come from; only `random` changes what a model is good for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weights {
    /// From the Hub.
    Released,
    /// With fgclip-rt.
    Shipped,
    /// From a folder.
    Local,
    /// For benchmarks only.
    Random,
}

fn natural(node: &Node) -> Decoded<u64> {
    whole(0, INT64_MAX)(node)
}

fn index(node: &Node) -> Decoded<i32> {
    whole(0, INT32_MAX)(node).map(|number| number as i32)
}

fn up_to(most: u64) -> impl Fn(&Node) -> Decoded<u32> {
    move |node| whole(1, most)(node).map(|number| number as u32)
}

fn sha256(node: &Node) -> Decoded<String> {
    let text = String::decode(node)?;
    let digest = text.strip_suffix('\n').unwrap_or(&text);
    if digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        Ok(text)
    } else {
        Err(node.fault("Expected `str` matching regex '^[0-9a-f]{64}$'"))
    }
}

strict! {
    /// Identity of the model.
    pub struct ModelInfo {
        /// Name in the registry, or of the checkpoint's folder.
        name: String,
        /// Architecture.
        family: String,
        /// Origin of the weights.
        source: Option<String>,
        /// Commit on the Hub.
        revision: Option<String>,
        /// Kind of the weights.
        weights: Weights = one_of(&[
            ("released", Weights::Released), ("shipped", Weights::Shipped), ("local", Weights::Local),
            ("random", Weights::Random),
        ]),
        /// Digest of the checkpoint.
        checkpoint_sha256: Option<String>,
    }

    /// logits = exp(logit_scale) · cosine + logit_bias, then the activation.
    pub struct Score {
        /// What becomes of a logit.
        activation: Activation = one_of(&[("sigmoid", Activation::Sigmoid), ("softmax", Activation::Softmax)]),
        /// A logarithm.
        logit_scale: f64 = real(-88.0, 88.0),
        /// Added to a logit.
        logit_bias: f64 = real(-1e6, 1e6),
    }

    /// `index` is the text graph's `walk_type` input; `length` is the number of tokens, padding included.
    pub struct WalkType {
        /// The graph's input.
        index: i32 = index,
        /// Number of tokens.
        length: u32 = up_to(MOST_TOKENS),
    }

    /// Tokenisation.
    pub struct TextSpec {
        /// File of the tokenizer.
        tokenizer: String,
        /// Whether texts are lower-cased first.
        lowercase: bool,
        /// Fills a text up to its length.
        pad_token_id: i32 = index,
        /// Whether the text graph takes a mask.
        attention_mask: bool,
        /// Kinds of texts.
        walk_types: Ordered<WalkType>,
    }

    /// An input or output of a graph; a named axis is dynamic.
    pub struct TensorSpec {
        /// Its name.
        name: String,
        /// Its type, such as `float32`.
        dtype: String,
        /// Its axes.
        shape: Vec<Axis>,
    }

    /// One graph in one precision.
    pub struct GraphFile {
        /// Its file.
        file: String,
        /// What it takes.
        inputs: Vec<TensorSpec>,
        /// What it gives.
        outputs: Vec<TensorSpec>,
    }

    /// Limits of parity.
    pub struct Limits {
        /// Largest difference, as a share.
        max_error: Option<f64> = optional(real(0.0, f64::INFINITY)),
        /// Smallest cosine.
        min_cosine: f64 = real(-1.0, 1.0),
        /// Share of dense vectors that keep it.
        dense_share: f64 = real(0.0, 1.0),
    }

    /// Distances from the reference in float64.
    pub struct FromExact {
        /// Of the graph's vectors.
        error: f64,
        /// Of the graph's vectors.
        min_cosine: f64,
        /// Of the reference in float32.
        reference_error: f64,
        /// Of the reference in float32.
        reference_min_cosine: f64,
    }

    /// One comparison with the reference.
    pub struct ParityRow {
        /// The graph, or a step around it.
        graph: String,
        /// The image, bucket or walk type.
        case: String,
        /// Number of vectors.
        count: u64 = natural,
        /// Largest difference, as a share.
        max_error: f64,
        /// Largest difference.
        max_difference: f64,
        /// Smallest cosine.
        min_cosine: f64,
        /// Mean cosine.
        mean_cosine: f64,
        /// Share of cosines within the limit.
        within: f64,
        /// Largest difference of a logit.
        logit_shift: Option<f64>,
        /// Vectors whose nearest vector changed.
        flips: Option<u64> = optional(natural),
        /// Distances from the exact results.
        from_exact: Option<FromExact>,
        /// Whether the vectors kept the limits.
        passed: bool,
    }

    /// The recorded probe, and its measurements at export.
    pub struct Parity {
        /// File of the probe.
        probe: String,
        /// File of its results in float64.
        exact_probe: Option<String>,
        /// By precision.
        limits: Ordered<Limits>,
        /// By precision.
        measured: Ordered<Vec<ParityRow>>,
    }

    /// Data that the ranges of quantised layers were measured on.
    pub struct Calibration {
        /// Choice of a range.
        method: String,
        /// Images measured.
        images: u64 = natural,
        /// Texts measured.
        texts: u64 = natural,
        /// Images held out.
        held_out_images: u64 = natural,
        /// Texts held out.
        held_out_texts: u64 = natural,
        /// Digest of the data.
        sha256: String,
    }

    /// Consecutive blocks of one tower.
    pub struct Span {
        /// Name of the first.
        first: String,
        /// Name of the last.
        last: String,
    }

    /// Changes that make a lower precision.
    pub struct Lowering {
        /// Type of the linear layers.
        linear: String,
        /// Type of the rest.
        other: String,
        /// Layers put back to a higher type.
        moved: Ordered<String>,
        /// Blocks whose residual stream is in float16.
        residual: Vec<Span>,
        /// Layers whose inputs were rescaled.
        smoothed: u64 = natural,
        /// Data of the ranges.
        calibration: Option<Calibration>,
    }

    /// Size in bytes and digest of one file.
    pub struct FileInfo {
        /// Bytes.
        size: u64 = natural,
        /// Hexadecimal digest.
        sha256: String = sha256,
    }

    /// The whole `manifest.json`.
    pub struct Manifest {
        /// [`FORMAT`].
        format: String,
        /// [`FORMAT_VERSION`].
        format_version: u64 = whole(FORMAT_VERSION, FORMAT_VERSION),
        /// Identity of the model.
        model: ModelInfo,
        /// Versions of what made the bundle.
        producer: Ordered<String>,
        /// Width of every vector.
        embedding_size: u32 = up_to(MOST_WIDTH),
        /// Vectors to scores.
        score: Score,
        /// Preparation of images.
        image: ImageSpec,
        /// Preparation of texts.
        text: TextSpec,
        /// None if the model has no regions.
        box_shares: Option<Shares> = optional(one_of(&[("float64", Shares::Float64), ("float32", Shares::Float32)])),
        /// By graph, then by precision.
        graphs: Ordered<Ordered<GraphFile>>,
        /// By precision.
        lowering: Ordered<Lowering>,
        /// The probe.
        parity: Parity,
        /// By name.
        files: Ordered<FileInfo>,
    }
}

/// An axis of a tensor: a size, or the name of a dynamic axis.
#[derive(Clone, Debug, PartialEq)]
pub enum Axis {
    /// A fixed size.
    Size(i64),
    /// A size that differs from run to run.
    Named(String),
}

impl Decode for Axis {
    fn decode(node: &Node) -> Decoded<Self> {
        match node.value() {
            Value::String(name) => Ok(Axis::Named(name.clone())),
            Value::Number(number) if !number.is_f64() => {
                number.as_i64().map(Axis::Size).ok_or_else(|| node.fault("Expected a size of 63 bits"))
            }
            _ => Err(node.expected("int | str")),
        }
    }
}

/// Grids that images are resized to.
#[derive(Clone, Debug, PartialEq)]
pub enum Sizes {
    /// A grid that fills a bucket and keeps the aspect ratio.
    Naflex {
        /// Patch counts, ascending.
        buckets: Vec<u32>,
        /// The largest patch count that can be asked for.
        max_num_patches: u32,
    },
    /// One square for all.
    Square {
        /// Side in pixels.
        image_size: u32,
    },
}

/// Preparation of images.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSpec {
    /// Grids that images are resized to.
    pub sizes: Sizes,
    /// Side of a patch in pixels.
    pub patch_size: u32,
    /// Filter of the resize.
    pub resample: Filter,
    /// Whether the reference turns files upright by their EXIF orientation; pixels carry none.
    pub exif_transpose: bool,
}

impl Decode for ImageSpec {
    fn decode(node: &Node) -> Decoded<Self> {
        const COMMON: [&str; 5] = ["kind", "patch_size", "channels", "resample", "exif_transpose"];
        const FILTERS: &[(&str, Filter)] = &[("bilinear", Filter::Bilinear), ("bicubic", Filter::Bicubic)];
        let kind = match node.object()?.get("kind") {
            Some(Value::String(kind)) => kind.as_str(),
            Some(_) => return Err(node.fault("Expected `str` as the tag `kind`")),
            None => return Err(node.fault("Object missing required field `kind`")),
        };
        let pixels = up_to(MOST_PIXELS);
        let naflex = match kind {
            "naflex" => true,
            "square" => false,
            _ => return Err(node.fault(&format!("Invalid value '{kind}' of the tag `kind`"))),
        };
        let own: &[&str] = if naflex { &["buckets", "max_num_patches"] } else { &["image_size"] };
        let fields = node.fields(&[&COMMON, own].concat())?;
        let sizes = if naflex {
            Sizes::Naflex {
                buckets: fields.with("buckets", |node| {
                    let counts: Vec<PatchCount> = Vec::decode(node)?;
                    if counts.is_empty() {
                        return Err(node.fault("Expected `array` of length >= 1"));
                    }
                    Ok(counts.into_iter().map(|count| count.0).collect())
                })?,
                max_num_patches: fields.with("max_num_patches", up_to(MOST_PATCHES))?,
            }
        } else {
            Sizes::Square { image_size: fields.with("image_size", &pixels)? }
        };
        let channels = fields.with("channels", &pixels)?;
        if channels != 3 {
            return Err(node.fault(&format!("gives pixels {channels} channels, and images are RGB")));
        }
        let filters = if naflex { &FILTERS[..1] } else { FILTERS };
        Ok(ImageSpec {
            sizes,
            patch_size: fields.with("patch_size", &pixels)?,
            resample: fields.with("resample", one_of(filters))?,
            exif_transpose: fields.get("exif_transpose")?,
        })
    }
}

struct PatchCount(u32);

impl Decode for PatchCount {
    fn decode(node: &Node) -> Decoded<Self> {
        up_to(MOST_PATCHES)(node).map(PatchCount)
    }
}

impl ImageSpec {
    /// The largest patch count that an image can have, as the manifest says it.
    pub fn max_num_patches(&self) -> u32 {
        match &self.sizes {
            Sizes::Naflex { max_num_patches, .. } => *max_num_patches,
            Sizes::Square { image_size } => {
                let side = image_size / self.patch_size;
                side.saturating_mul(side)
            }
        }
    }

    /// Bytes of one patch.
    pub fn patch_bytes(&self) -> usize {
        let side = self.patch_size as usize;
        side * side * 3
    }

    fn largest_bucket(&self) -> u32 {
        match &self.sizes {
            Sizes::Naflex { buckets, .. } => *buckets.last().expect("decoded as one or more"),
            Sizes::Square { .. } => self.max_num_patches(),
        }
    }
}

impl Manifest {
    /// Decodes the text of a `manifest.json`; `place` is its path, for messages.
    pub fn decode(text: &[u8], place: &str) -> Result<Manifest> {
        let invalid =
            |fault: String| Error::new(Status::BundleInvalid, format!("{place} {fault}; export the bundle again."));
        let document: Value =
            serde_json::from_slice(text).map_err(|error| invalid(format!("is not JSON ({error})")))?;
        if document.get("format").and_then(Value::as_str) != Some(FORMAT) {
            let message =
                format!("{place} is not the manifest of an fgclip-rt bundle; point at a folder made by export.");
            return Err(Error::new(Status::BundleInvalid, message));
        }
        match document.get("format_version").and_then(Value::as_u64) {
            Some(version) if version > FORMAT_VERSION => {
                let message = format!(
                    "{place} has format version {version}, and this fgclip-rt reads {FORMAT_VERSION}; upgrade \
                     fgclip-rt, or export the bundle with this version."
                );
                return Err(Error::new(Status::BundleNewer, message));
            }
            Some(version) if (1..FORMAT_VERSION).contains(&version) => {
                let message = format!(
                    "{place} has format version {version} of an earlier fgclip-rt, and this one reads \
                     {FORMAT_VERSION}; export the bundle again."
                );
                return Err(Error::new(Status::BundleOlder, message));
            }
            _ => {}
        }
        let manifest = <Manifest as Decode>::decode(&Node::root(&document))
            .map_err(|fault| invalid(format!("is not as specified: {fault}")))?;
        match contradiction(&manifest).or_else(|| interface::misfit(&manifest)) {
            Some(fault) => Err(invalid(fault)),
            None => Ok(manifest),
        }
    }

    /// Precisions that every graph has, in the order of the file.
    pub fn precisions(&self) -> Vec<&str> {
        let Some(first) = self.graphs.values().next() else { return Vec::new() };
        first.keys().filter(|precision| self.graphs.values().all(|graph| graph.has(precision))).collect()
    }

    /// A graph in a precision that every graph has.
    pub fn graph(&self, name: &str, precision: &str) -> Option<&GraphFile> {
        self.graphs.get(name)?.get(precision)
    }
}

/// The first contradiction between parts of a manifest, as the end of a sentence whose subject is the manifest.
fn contradiction(manifest: &Manifest) -> Option<String> {
    for name in manifest.files.keys() {
        let outside = name.starts_with('/')
            || name.split('/').any(|part| part == "..")
            || name.contains('\\')
            || ["", ".", MANIFEST].contains(&name);
        if outside || !printable(name) {
            return Some(format!("lists {}, not a path inside the bundle", quoted(name)));
        }
    }
    let precisions = manifest.graphs.values().flat_map(Ordered::keys);
    if let Some(name) = manifest.text.walk_types.keys().chain(precisions).find(|name| !printable(name)) {
        return Some(format!("gives a walk type or a precision the name {}", quoted(name)));
    }
    if let Some(fault) = image_contradiction(&manifest.image) {
        return Some(fault);
    }
    if !manifest.text.walk_types.has("short") {
        return Some("lists no walk type 'short', which every model has".into());
    }
    let parity = &manifest.parity;
    let graphs = manifest.graphs.values().flat_map(Ordered::values).map(|entry| &entry.file);
    let mut named = [&manifest.text.tokenizer, &parity.probe].into_iter().chain(&parity.exact_probe).chain(graphs);
    if let Some(name) = named.find(|name| !manifest.files.has(name)) {
        return Some(format!("names {} but does not list it under files", quoted(name)));
    }
    let precisions = manifest.precisions();
    if precisions.is_empty() {
        return Some("lists no precision that every graph has".into());
    }
    if manifest.graphs.has("region") != manifest.box_shares.is_some() {
        return Some("has box_shares without a graph of regions, or the graph without them".into());
    }
    if let Some(precision) = precisions.iter().find(|precision| !parity.limits.has(precision)) {
        return Some(format!("has no parity limits for {}", quoted(precision)));
    }
    let of_precisions = (manifest.lowering.keys().map(|name| ("lowering", name)))
        .chain(parity.limits.keys().map(|name| ("parity.limits", name)))
        .chain(parity.measured.keys().map(|name| ("parity.measured", name)));
    for (key, precision) in of_precisions {
        if !precisions.contains(&precision) {
            return Some(format!("has {} under {key} but lists no such precision", quoted(precision)));
        }
    }
    None
}

fn image_contradiction(image: &ImageSpec) -> Option<String> {
    let patch = image.patch_size;
    match &image.sizes {
        Sizes::Square { image_size } if image_size % patch != 0 => {
            return Some(format!("cuts images of {image_size} pixels into patches of {patch}"));
        }
        Sizes::Naflex { buckets, .. } if !buckets.windows(2).all(|pair| pair[0] < pair[1]) => {
            let mut list = String::new();
            for bucket in buckets {
                let _ = write!(list, "{}{bucket}", if list.is_empty() { "" } else { ", " });
            }
            return Some(format!("lists the buckets {list}, which do not ascend"));
        }
        _ => {}
    }
    let (largest, most) = (image.largest_bucket(), image.max_num_patches());
    if largest > most {
        return Some(format!("lists a bucket of {largest} patches, more than max_num_patches ({most})"));
    }
    let area = u64::from(largest) * u64::from(patch).pow(2);
    if u64::from(largest) > MOST_PATCHES || area > MOST_AREA {
        return Some(format!("prepares images of {largest} patches of {patch} pixels, which would fill the memory"));
    }
    None
}
