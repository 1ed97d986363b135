//! The model: images, regions and texts to vectors, and vectors to scores.
//!
//! Batches are cut as the Python runtime cuts them (`fgclip_rt/batching.py`), because the numbers of a vector may depend
//! on what runs beside it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{mpsc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use serde_json::json;

use crate::bundle::{Bundle, Check};
use crate::device::{self, Choice, Device};
use crate::engines::{self, Engine};
use crate::error::{Error, Result, Status};
use crate::exit;
use crate::grid::{self, Grid};
use crate::interface::{describe, Graph};
use crate::machine::{release_free_memory, usable_cores};
use crate::manifest::{GraphFile, Sizes, WalkType};
use crate::messages::{grouped, joined, quoted, shortened};
use crate::onnx;
use crate::patches::{self, Filter, Pixels};
use crate::runtime::{self, Fault, Runtime};
use crate::scores;
use crate::session::{Input, Prepacked, Provider, Runs, Session, SessionOptions, Values, Weight};
use crate::tokenizer::{lower, Tokenizer};
use crate::weights::Weights;

/// Patches or tokens of a batch whose size is not given: for each thread, and at most. They keep the cores busy, and are
/// few enough for activations to stay in the caches. A longer image or text runs alone.
const TOKENS_PER_THREAD: usize = 512;
const TOKENS_PER_BATCH: usize = 2048;
/// The same on a GPU: fewer leave some of its processors idle.
const GPU_TOKENS_PER_BATCH: usize = 16_384;

/// Most threads of one operator.
const MOST_THREADS: u32 = 1024;

/// Bytes of a text, unless the caller sets a bound.
pub const TEXT_BYTES: usize = 64 << 20;

/// What becomes of the memory of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// It is kept for the next run, unless the run was a very large one.
    #[default]
    Fast,
    /// It is given back.
    Small,
}

/// How a model is opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The device.
    pub device: Device,
    /// Number of the GPU.
    pub device_number: u32,
    /// Threads of one operator; None takes one for each core that this process may use.
    pub threads: Option<u32>,
    /// What becomes of the memory of a run.
    pub memory: Memory,
    /// Whether threads may not spin even while a run is in progress.
    pub no_spinning: bool,
    /// Whether files are compared by their sizes only.
    pub trust_files: bool,
    /// Whether each session packs its own copy of the weights.
    pub separate_weights: bool,
    /// One of the bundle's precisions; None takes the first.
    pub precision: Option<String>,
    /// Path of libonnxruntime; None looks for it.
    pub onnxruntime: Option<PathBuf>,
    /// Most bytes of a text; None takes [`TEXT_BYTES`].
    pub text_bytes: Option<usize>,
}

/// How images are embedded.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageRequest {
    /// Number of patches that every image is resized to fill; None lets the model choose.
    pub max_num_patches: Option<u32>,
    /// Images per run of the graph; None chooses by the number of patches.
    pub batch_size: Option<usize>,
    /// Whether vectors are the reference's own features instead of length one.
    pub features: bool,
}

/// How texts are embedded.
#[derive(Clone, Copy, Debug)]
pub struct TextRequest<'a> {
    /// Kind of the texts.
    pub walk_type: &'a str,
    /// Whether vectors are the reference's own features instead of length one.
    pub features: bool,
}

/// Where an image is prepared to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Rows and columns of patches.
    pub grid: Grid,
    /// The number of patches that it was allowed, by which images are batched.
    pub bucket: u32,
}

/// Memory of one caller that is kept from call to call.
#[derive(Default)]
pub struct Scratch {
    resize: patches::Scratch,
    spare: Spare,
}

/// Memory for the patches of batches. A thread takes it while another puts it back.
#[derive(Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        self.lock().pop().unwrap_or_default()
    }

    fn put(&self, mut pixels: Vec<u8>) {
        pixels.clear();
        self.lock().push(pixels);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sessions are dropped before what they use, so they come first.
struct Sessions {
    engines: Vec<(Engine, OnceLock<Session>)>,
    open: [OnceLock<Session>; Graph::ALL.len()],
    opening: Mutex<()>,
    /// Whether the first run of each graph was noted, for the end of the process.
    watched: [OnceLock<()>; Graph::ALL.len()],
    prepacked: Option<Prepacked>,
    weights: Weights,
}

/// One bundle, ready to run. Safe to use from several threads.
pub struct Model {
    bundle: Bundle,
    sessions: Sessions,
    tokenizer: Tokenizer,
    runtime: &'static Runtime,
    provider: Provider,
    precision: String,
    options: SessionOptions,
    memory: Memory,
    text_bytes: usize,
    info: String,
}

/// Images of one bucket that run together.
struct Batch {
    bucket: u32,
    indices: Vec<usize>,
    grids: Vec<Grid>,
    /// Patches of all images, one image behind another.
    pixels: Vec<u8>,
}

impl Model {
    /// Opens a bundle. Graphs are opened when they are first used.
    pub fn open(folder: &Path, options: &Options) -> Result<Model> {
        let check = if options.trust_files { Check::Sizes } else { Check::Hashes };
        let bundle = Bundle::open(folder, check)?;
        let precision = bundle.precision(options.precision.as_deref())?;
        let threads = options.threads.unwrap_or_else(|| usable_cores() as u32);
        if !(1..=MOST_THREADS).contains(&threads) {
            let message =
                format!("threads is {threads}; pass a whole number from 1 to {MOST_THREADS}, or 0 to have it chosen.");
            return Err(Error::new(Status::ArgumentInvalid, message));
        }
        let tokenizer = open_tokenizer(&bundle)?;
        let runtime = runtime::open(options.onnxruntime.as_deref())?;
        let Choice { provider, why, gpu } = device::choose(runtime, options.device, options.device_number)?;
        let fitting = match options.device {
            Device::TensorRt => engines::find(&bundle, check, &precision, &runtime.version, gpu.as_ref())?,
            _ => Ok(Vec::new()),
        };
        let (engines, why) = match fitting {
            Ok(engines) => (engines, why),
            Err(reason) => {
                (Vec::new(), format!("{why}; {reason}, so a shape's first run waits until TensorRT is done"))
            }
        };
        // What no engine takes must not wait for minutes until TensorRT has built one.
        let rest = if engines.is_empty() { provider } else { Provider::Cuda(options.device_number) };
        // What onnxruntime packs for a float16 LayerNormalization cannot be shared, and it refuses such a graph.
        let shared = provider == Provider::Cpu && !options.separate_weights && precision != "fp16";
        let prepacked = shared.then(|| Prepacked::new(runtime)).transpose().map_err(cannot_prepare)?;
        let names: Vec<String> = engines.iter().map(|engine| engine.name.clone()).collect();
        let sessions = Sessions {
            engines: engines.into_iter().map(|engine| (engine, OnceLock::new())).collect(),
            open: Default::default(),
            opening: Mutex::new(()),
            watched: Default::default(),
            prepacked,
            weights: Weights::default(),
        };
        let session_options = SessionOptions { threads, provider: rest, spinning: !options.no_spinning };
        let (name, number) = match provider {
            Provider::Cpu => ("cpu", None),
            Provider::Cuda(number) => ("cuda", Some(number)),
            Provider::TensorRt(number) => ("tensorrt", Some(number)),
        };
        let info = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "onnxruntime": { "version": runtime.version, "path": runtime.path, "why": runtime.why },
            "device": { "name": name, "number": number, "why": why },
            "engines": names,
            "precision": precision,
            "threads": threads,
            "memory": if options.memory == Memory::Small { "small" } else { "fast" },
            "spinning": !options.no_spinning,
            "shared_weights": shared,
        });
        Ok(Model {
            bundle,
            sessions,
            tokenizer,
            runtime,
            provider,
            precision,
            options: session_options,
            memory: options.memory,
            text_bytes: options.text_bytes.unwrap_or(TEXT_BYTES),
            info: info.to_string(),
        })
    }

    /// The text of the manifest.
    pub fn manifest_json(&self) -> &str {
        &self.bundle.manifest_json
    }

    /// JSON that says which libonnxruntime, which device and which options run, and why.
    pub fn info_json(&self) -> &str {
        &self.info
    }

    /// Width D of every vector.
    pub fn dim(&self) -> usize {
        self.bundle.manifest.embedding_size as usize
    }

    /// Options for the runs of one caller.
    pub fn runs(&self) -> Result<Runs> {
        Runs::new(self.runtime).map_err(cannot_prepare)
    }

    /// Opens a graph now instead of at its first use, or its engines if it has some.
    pub fn warm(&self, graph: Graph) -> Result<()> {
        let _inside = exit::enter().ok_or_else(ending)?;
        let mut engines = self.sessions.engines.iter().filter(|(engine, _)| engine.graph == graph).peekable();
        if engines.peek().is_none() {
            return self.session(graph).map(|_| ());
        }
        engines.try_for_each(|(engine, slot)| self.opened(slot, || self.load_engine(graph, engine)).map(|_| ()))
    }

    /// Whether the model has a graph.
    pub fn has(&self, graph: Graph) -> bool {
        self.bundle.manifest.graphs.has(graph.name())
    }

    /// Where an image of these sides is prepared to.
    pub fn layout(&self, width: u32, height: u32, max_num_patches: Option<u32>) -> Result<Layout> {
        if width == 0 || height == 0 {
            let message = format!("an image has {width}×{height} pixels; pass one that is not empty.");
            return Err(Error::new(Status::ImageUnsupported, message));
        }
        let spec = &self.bundle.manifest.image;
        let refused = |message: String| Err(Error::new(Status::ArgumentInvalid, message));
        match &spec.sizes {
            Sizes::Square { image_size } => {
                let bucket = spec.max_num_patches();
                if let Some(asked) = max_num_patches.filter(|asked| *asked != bucket) {
                    return refused(format!(
                        "max_num_patches is {asked}, and this model takes images of {image_size}×{image_size} pixels, \
                         {bucket} patches, only; leave it out."
                    ));
                }
                let side = image_size / spec.patch_size;
                Ok(Layout { grid: Grid { rows: side, columns: side }, bucket })
            }
            Sizes::Naflex { buckets, max_num_patches: most } => {
                let bucket = match max_num_patches {
                    Some(asked) if !(1..=*most).contains(&asked) => {
                        return refused(format!("max_num_patches is {asked}; pass a number from 1 to {most}."));
                    }
                    Some(asked) => asked,
                    None => grid::bucket(width, height, spec.patch_size, buckets),
                };
                let grid = grid::target_grid(width, height, spec.patch_size, bucket);
                if u64::from(grid.rows) * u64::from(grid.columns) > u64::from(bucket) {
                    let message = format!(
                        "an image of {}×{} pixels is too long to become {} patches or fewer; crop it.",
                        grouped(width.into()),
                        grouped(height.into()),
                        grouped(bucket.into())
                    );
                    return Err(Error::new(Status::ImageTooLarge, message));
                }
                Ok(Layout { grid, bucket })
            }
        }
    }

    /// Bytes of the patches of a grid.
    pub fn patch_bytes(&self, grid: Grid) -> usize {
        cells(grid) * self.bundle.manifest.image.patch_bytes()
    }

    /// Writes the patches of an image to the front of `out`.
    pub fn prepare(
        &self,
        scratch: &mut Scratch,
        pixels: &Pixels,
        max_num_patches: Option<u32>,
        out: &mut [u8],
    ) -> Result<Layout> {
        let layout = self.layout(pixels.width(), pixels.height(), max_num_patches)?;
        let out = room(out, self.patch_bytes(layout.grid), "bytes")?;
        self.write_patches(&mut scratch.resize, pixels, layout.grid, out)?;
        Ok(layout)
    }

    /// One vector per image, [n, D] into `out`. The index of an error is that of the image.
    pub fn embed_images(
        &self,
        scratch: &mut Scratch,
        runs: &Runs,
        images: &[Pixels],
        request: &ImageRequest,
        out: &mut [f32],
    ) -> Result<()> {
        let out = room(out, product(images.len(), self.dim())?, "floats")?;
        let Scratch { resize, spare } = &mut *scratch;
        let mut run = |batch| self.run_images(spare, runs, batch, !request.features, out);
        if images.len() == 1 {
            self.prepare_batches(resize, spare, runs, images, request, run)?;
        } else {
            // A batch is prepared while the one before it runs. It is handed over when that one is done, so that no
            // more than two are in memory.
            let (give, take) = mpsc::sync_channel(0);
            thread::scope(|scope| {
                let preparing = scope.spawn(|| {
                    // If nobody takes a batch, a run has failed, whose error the caller gets.
                    let give = move |batch| give.send(batch).map_err(|_| cancelled());
                    self.prepare_batches(resize, spare, runs, images, request, give)
                });
                for batch in take {
                    run(batch)?;
                }
                preparing.join().unwrap_or_else(|panic| resume_unwind(panic))
            })?;
        }
        self.shrink(scratch);
        Ok(())
    }

    /// One vector per prepared image, [n, D] into `out`, as [`Model::prepare`] gives them, one behind another. They run
    /// together.
    pub fn embed_patches(
        &self,
        scratch: &mut Scratch,
        runs: &Runs,
        pixels: &[u8],
        grids: &[Grid],
        features: bool,
        out: &mut [f32],
    ) -> Result<()> {
        let out = room(out, product(grids.len(), self.dim())?, "floats")?;
        if grids.is_empty() {
            return Ok(());
        }
        let mut size = 0_usize;
        for (index, grid) in grids.iter().enumerate() {
            self.check_grid(*grid).map_err(|error| error.at(index))?;
            size = size.saturating_add(self.patch_bytes(*grid));
        }
        if size != pixels.len() {
            let message = format!("the patches have {} bytes, and their grids {size}; pass all patches.", pixels.len());
            return Err(Error::new(Status::ArgumentInvalid, message));
        }
        let mut kept = scratch.spare.take();
        append(&mut kept, pixels.len())?.copy_from_slice(pixels);
        let batch = Batch { bucket: 0, indices: (0..grids.len()).collect(), grids: grids.to_vec(), pixels: kept };
        self.run_images(&scratch.spare, runs, batch, !features, out)?;
        self.shrink(scratch);
        Ok(())
    }

    /// The reference's own dense features of an image, [rows·columns, D] into `out`.
    pub fn dense_features(
        &self,
        scratch: &mut Scratch,
        runs: &Runs,
        image: &Pixels,
        max_num_patches: Option<u32>,
        out: &mut [f32],
    ) -> Result<Layout> {
        self.check_has(Graph::Dense)?;
        let layout = self.layout(image.width(), image.height(), max_num_patches)?;
        let (bytes, count) = (self.patch_bytes(layout.grid), cells(layout.grid));
        let out = room(out, product(count, self.dim())?, "floats")?;
        let mut pixels = scratch.spare.take();
        self.write_patches(&mut scratch.resize, image, layout.grid, append(&mut pixels, bytes)?)?;
        let length = self.padded(Graph::Dense, 1, count);
        if length == count {
            self.run_on_images(Graph::Dense, runs, &pixels, count, &[layout.grid], false, out)?;
        } else {
            self.pad(&mut pixels, &[layout.grid], length)?;
            let mut rows = Vec::new();
            let padded = append(&mut rows, product(length, self.dim())?)?;
            self.run_on_images(Graph::Dense, runs, &pixels, length, &[layout.grid], false, padded)?;
            out.copy_from_slice(&padded[..out.len()]);
        }
        pixels.clear();
        scratch.spare.put(pixels);
        self.shrink(scratch);
        Ok(layout)
    }

    /// Brings vectors to length one.
    pub fn normalize(&self, vectors: &mut [f32]) {
        scores::normalize(vectors, self.dim());
    }

    /// One vector per box over an image's dense features, [n, D] into `out`; boxes are in units of the grid.
    pub fn regions(
        &self,
        runs: &Runs,
        dense: &[f32],
        grid: Grid,
        boxes: &[[f32; 4]],
        features: bool,
        out: &mut [f32],
    ) -> Result<()> {
        let out = room(out, product(boxes.len(), self.dim())?, "floats")?;
        if boxes.is_empty() {
            return self.check_has(Graph::Region);
        }
        let (images, count, width) = (vec![0; boxes.len()], boxes.len() as i64, self.dim() as i64);
        let sides = [grid.rows as i32, grid.columns as i32];
        let inputs = [
            Input { name: c"dense_features", shape: &[1, cells(grid) as i64, width], values: Values::Float32(dense) },
            Input { name: c"spatial_shapes", shape: &[1, 2], values: Values::Int32(&sides) },
            Input { name: c"boxes", shape: &[count, 4], values: Values::Float32(boxes.as_flattened()) },
            Input { name: c"box_images", shape: &[count], values: Values::Int32(&images) },
        ];
        self.run(Graph::Region, runs, &inputs, !features, &[count, width], out)
    }

    /// One vector per mask over an image's dense features, [n, D] into `out`; `weights` are those of the patches in each
    /// mask, [n, rows·columns].
    pub fn masks(
        &self,
        runs: &Runs,
        dense: &[f32],
        grid: Grid,
        weights: &[f32],
        features: bool,
        out: &mut [f32],
    ) -> Result<()> {
        let (cells, width) = (cells(grid), self.dim() as i64);
        let count = weights.len() / cells;
        let out = room(out, product(count, self.dim())?, "floats")?;
        if count == 0 {
            return self.check_has(Graph::Mask);
        }
        let images = vec![0; count];
        let (cells, count) = (cells as i64, count as i64);
        let inputs = [
            Input { name: c"dense_features", shape: &[1, cells, width], values: Values::Float32(dense) },
            Input { name: c"masks", shape: &[count, cells], values: Values::Float32(weights) },
            Input { name: c"mask_images", shape: &[count], values: Values::Int32(&images) },
        ];
        self.run(Graph::Mask, runs, &inputs, !features, &[count, width], out)
    }

    /// A kind of texts.
    pub fn walk_type(&self, name: &str) -> Result<&WalkType> {
        let kinds = &self.bundle.manifest.text.walk_types;
        kinds.get(name).ok_or_else(|| {
            let message =
                format!("this model has no walk type {}; choose from {}.", quoted(name), joined(kinds.keys()));
            Error::new(Status::WalkTypeMissing, message)
        })
    }

    /// Whether texts need an attention mask.
    pub fn has_attention_mask(&self) -> bool {
        self.bundle.manifest.text.attention_mask
    }

    /// Token ids of a text into `ids`, one on real tokens into `mask`, both of the walk type's length; whether the text
    /// was too long and lost its end.
    pub fn tokenize(&self, text: &str, kind: &WalkType, ids: &mut [i32], mask: Option<&mut [i32]>) -> Result<bool> {
        if text.len() > self.text_bytes {
            let message = format!(
                "a text has {} bytes, over the limit of {}; shorten it, or raise the option max_text_bytes.",
                text.len(),
                self.text_bytes
            );
            return Err(Error::new(Status::TextTooLong, message));
        }
        let spec = &self.bundle.manifest.text;
        let encoded =
            self.tokenizer.encode(text, spec.lowercase, kind.length as usize, spec.pad_token_id, ids, mask)?;
        Ok(encoded.truncated)
    }

    /// One vector per text, [n, D] into `out`. Whether each text lost its end goes to `truncated`, if given. The index of
    /// an error is that of the text. Equal texts run once.
    pub fn embed_texts<'t>(
        &self,
        runs: &Runs,
        texts: &[&'t str],
        request: &TextRequest,
        out: &mut [f32],
        mut truncated: Option<&mut [u8]>,
    ) -> Result<()> {
        let kind = self.walk_type(request.walk_type)?;
        let (width, length) = (self.dim(), kind.length as usize);
        let out = room(out, product(texts.len(), width)?, "floats")?;
        let size = self.batch_size(Graph::Text, length);
        // Equal characters mean equal tokens, and some models read no capitals.
        let lowercase = self.bundle.manifest.text.lowercase;
        let characters = |text: &'t str| if lowercase { Cow::Owned(lower(text)) } else { Cow::Borrowed(text) };
        let mut first: HashMap<Cow<str>, usize> = HashMap::with_capacity(texts.len());
        let mut earlier = Vec::with_capacity(texts.len());
        let (mut rows, mut ids, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        for (index, text) in texts.iter().enumerate() {
            self.check_running(runs)?;
            let equal = *first.entry(characters(text)).or_insert(index);
            earlier.push(equal);
            if equal != index {
                if let Some(truncated) = truncated.as_deref_mut() {
                    truncated[index] = truncated[equal];
                }
                continue;
            }
            let row = append(&mut ids, length)?;
            let cut =
                self.tokenize(text, kind, row, Some(append(&mut mask, length)?)).map_err(|error| error.at(index))?;
            if let Some(truncated) = truncated.as_deref_mut() {
                truncated[index] = u8::from(cut);
            }
            rows.push(index);
            if rows.len() == size {
                self.run_texts(runs, kind, &rows, &ids, &mask, !request.features, out)?;
                rows.clear();
                ids.clear();
                mask.clear();
            }
        }
        self.run_texts(runs, kind, &rows, &ids, &mask, !request.features, out)?;
        for (index, equal) in earlier.into_iter().enumerate() {
            if equal != index {
                out.copy_within(equal * width..(equal + 1) * width, index * width);
            }
        }
        Ok(())
    }

    /// One vector per tokenised text, [n, D] into `out`; `ids` and `mask` are [n, L], as [`Model::tokenize`] gives them.
    /// They run together.
    pub fn embed_tokens(
        &self,
        runs: &Runs,
        ids: &[i32],
        mask: Option<&[i32]>,
        request: &TextRequest,
        out: &mut [f32],
    ) -> Result<()> {
        let kind = self.walk_type(request.walk_type)?;
        if mask.is_none() && self.has_attention_mask() {
            let message = "this model's texts need an attention mask; pass the one that tokenize gives.";
            return Err(Error::new(Status::ArgumentInvalid, message));
        }
        let rows: Vec<usize> = (0..ids.len() / kind.length as usize).collect();
        let out = room(out, product(rows.len(), self.dim())?, "floats")?;
        self.run_texts(runs, kind, &rows, ids, mask.unwrap_or(ids), !request.features, out)
    }

    /// exp(logit_scale) · cosine + logit_bias of images' vectors [n, D] with texts' [m, D], [n, m] into `out`.
    pub fn logits(&self, images: &[f32], texts: &[f32], out: &mut [f32]) -> Result<()> {
        let width = self.dim();
        let out = room(out, product(images.len() / width, texts.len() / width)?, "floats")?;
        scores::logits(images, texts, width, &self.bundle.manifest.score, out);
        Ok(())
    }

    /// Probabilities of the logits: a sigmoid of each pair, or a softmax over the texts of each image.
    pub fn probabilities(&self, images: &[f32], texts: &[f32], out: &mut [f32]) -> Result<()> {
        let width = self.dim();
        let out = room(out, product(images.len() / width, texts.len() / width)?, "floats")?;
        let score = &self.bundle.manifest.score;
        scores::logits(images, texts, width, score, out);
        scores::probabilities(out, texts.len() / width, score.activation);
        Ok(())
    }

    /// Type of the shares of boxes; refuses models without regions.
    pub fn box_shares(&self) -> Result<crate::boxes::Shares> {
        self.check_has(Graph::Region)?;
        Ok(self.bundle.manifest.box_shares.expect("every bundle with regions has them"))
    }

    /// Refuses a graph that the model lacks.
    pub fn check_has(&self, graph: Graph) -> Result<()> {
        if self.has(graph) {
            return Ok(());
        }
        let message =
            format!("{} has {}; use a model that has them.", self.bundle.manifest.model.name, graph.without());
        Err(Error::new(Status::GraphMissing, message))
    }

    fn check_grid(&self, grid: Grid) -> Result<()> {
        let spec = &self.bundle.manifest.image;
        let (most, count) = (u64::from(spec.max_num_patches()), u64::from(grid.rows) * u64::from(grid.columns));
        let fits = match spec.sizes {
            Sizes::Square { .. } => grid.rows == grid.columns && count == most,
            Sizes::Naflex { .. } => (1..=most).contains(&count),
        };
        if fits {
            return Ok(());
        }
        let message = format!(
            "a grid has {}×{} patches, which this model does not take; pass what prepare_image gives.",
            grid.rows, grid.columns
        );
        Err(Error::new(Status::ArgumentInvalid, message))
    }

    fn batch_size(&self, graph: Graph, length: usize) -> usize {
        let tokens = match self.provider {
            Provider::Cpu => TOKENS_PER_BATCH.min(self.options.threads as usize * TOKENS_PER_THREAD),
            _ => GPU_TOKENS_PER_BATCH,
        };
        let most = self.engine(graph, 1, length).map_or(usize::MAX, |(engine, _)| engine.batch.1 as usize);
        (tokens / length).max(1).min(most)
    }

    /// The shortest engine that takes a batch.
    fn engine(&self, graph: Graph, count: usize, length: usize) -> Option<&(Engine, OnceLock<Session>)> {
        self.sessions.engines.iter().find(|(engine, _)| engine.takes(graph, count as u64, length as u64))
    }

    /// The number of patches that images of at most `length` are padded to: that of the engine that takes them.
    fn padded(&self, graph: Graph, count: usize, length: usize) -> usize {
        self.engine(graph, count, length).map_or(length, |(engine, _)| engine.length as usize)
    }

    fn write_patches(&self, scratch: &mut patches::Scratch, pixels: &Pixels, grid: Grid, out: &mut [u8]) -> Result<()> {
        let spec = &self.bundle.manifest.image;
        patches::write_patches(pixels, grid, spec.patch_size, spec.resample, scratch, out)
    }

    /// Prepares images in their order, and gives each batch away as soon as it is full, and the rest in the end.
    fn prepare_batches(
        &self,
        resize: &mut patches::Scratch,
        spare: &Spare,
        runs: &Runs,
        images: &[Pixels],
        request: &ImageRequest,
        mut give: impl FnMut(Batch) -> Result<()>,
    ) -> Result<()> {
        // In the order of their first images, as Python runs the last ones.
        let mut waiting: Vec<Batch> = Vec::new();
        for (index, image) in images.iter().enumerate() {
            self.check_running(runs)?;
            let prepared = self.queue(resize, spare, &mut waiting, index, image, request);
            let at = prepared.map_err(|error| error.at(index))?;
            let bucket = waiting[at].bucket as usize;
            let size = request.batch_size.unwrap_or_else(|| self.batch_size(Graph::Vision, bucket));
            if waiting[at].indices.len() >= size {
                give(waiting.remove(at))?;
            }
        }
        waiting.into_iter().try_for_each(give)
    }

    /// Prepares an image into the waiting batch of its bucket, and gives the batch's position.
    fn queue(
        &self,
        resize: &mut patches::Scratch,
        spare: &Spare,
        waiting: &mut Vec<Batch>,
        index: usize,
        image: &Pixels,
        request: &ImageRequest,
    ) -> Result<usize> {
        let Layout { grid, bucket } = self.layout(image.width(), image.height(), request.max_num_patches)?;
        let at = waiting.iter().position(|batch| batch.bucket == bucket).unwrap_or_else(|| {
            waiting.push(Batch { bucket, indices: Vec::new(), grids: Vec::new(), pixels: spare.take() });
            waiting.len() - 1
        });
        let batch = &mut waiting[at];
        let room = append(&mut batch.pixels, self.patch_bytes(grid))?;
        self.write_patches(resize, image, grid, room)?;
        batch.indices.push(index);
        batch.grids.push(grid);
        Ok(at)
    }

    fn run_images(
        &self,
        spare: &Spare,
        runs: &Runs,
        mut batch: Batch,
        normalize: bool,
        out: &mut [f32],
    ) -> Result<()> {
        self.check_running(runs)?;
        let longest = batch.grids.iter().copied().map(cells).max().unwrap_or(0);
        let length = self.padded(Graph::Vision, batch.grids.len(), longest);
        self.pad(&mut batch.pixels, &batch.grids, length)?;
        self.scattered(&batch.indices, out, |rows| {
            self.run_on_images(Graph::Vision, runs, &batch.pixels, length, &batch.grids, normalize, rows)
        })?;
        spare.put(batch.pixels);
        Ok(())
    }

    /// Moves the images of a batch apart, so that each has room for `length` patches, and fills the room with zeros.
    fn pad(&self, pixels: &mut Vec<u8>, grids: &[Grid], length: usize) -> Result<()> {
        let row = product(length, self.bundle.manifest.image.patch_bytes())?;
        let mut end = pixels.len();
        append(pixels, product(row, grids.len())? - end)?;
        // From the last image on, since each moves towards the end.
        for (index, grid) in grids.iter().enumerate().rev() {
            let size = self.patch_bytes(*grid);
            let (start, target) = (end - size, index * row);
            pixels.copy_within(start..end, target);
            pixels[target + size..target + row].fill(0);
            end = start;
        }
        Ok(())
    }

    /// Runs into the rows of `out` at `indices`: at once if these follow one another, and else by way of other memory.
    fn scattered(&self, indices: &[usize], out: &mut [f32], run: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
        let Some(first) = indices.first() else { return Ok(()) };
        let width = self.dim();
        if indices.windows(2).all(|pair| pair[0] + 1 == pair[1]) {
            return run(&mut out[first * width..(first + indices.len()) * width]);
        }
        let mut rows = Vec::new();
        run(append(&mut rows, product(indices.len(), width)?)?)?;
        for (index, row) in indices.iter().zip(rows.chunks_exact(width)) {
            out[index * width..(index + 1) * width].copy_from_slice(row);
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn run_on_images(
        &self,
        graph: Graph,
        runs: &Runs,
        pixels: &[u8],
        length: usize,
        grids: &[Grid],
        normalize: bool,
        out: &mut [f32],
    ) -> Result<()> {
        let (count, width) = (grids.len() as i64, self.dim() as i64);
        let sides: Vec<i32> = grids.iter().flat_map(|grid| [grid.rows as i32, grid.columns as i32]).collect();
        let bytes = self.bundle.manifest.image.patch_bytes() as i64;
        let inputs = [
            Input { name: c"patches", shape: &[count, length as i64, bytes], values: Values::Uint8(pixels) },
            Input { name: c"spatial_shapes", shape: &[count, 2], values: Values::Int32(&sides) },
        ];
        let vectors = [count, width];
        let maps = [count, length as i64, width];
        let shape: &[i64] = if graph == Graph::Dense { &maps } else { &vectors };
        self.run(graph, runs, &inputs, normalize, shape, out)
    }

    #[allow(clippy::too_many_arguments)]
    fn run_texts(
        &self,
        runs: &Runs,
        kind: &WalkType,
        rows: &[usize],
        ids: &[i32],
        mask: &[i32],
        normalize: bool,
        out: &mut [f32],
    ) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        self.check_running(runs)?;
        let (count, length, width) = (rows.len() as i64, i64::from(kind.length), self.dim() as i64);
        let kinds = vec![kind.index; rows.len()];
        let inputs = [
            Input { name: c"input_ids", shape: &[count, length], values: Values::Int32(ids) },
            Input { name: c"walk_type", shape: &[count], values: Values::Int32(&kinds) },
            Input { name: c"attention_mask", shape: &[count, length], values: Values::Int32(mask) },
        ];
        self.scattered(rows, out, |out| self.run(Graph::Text, runs, &inputs, normalize, &[count, width], out))
    }

    fn run(
        &self,
        graph: Graph,
        runs: &Runs,
        inputs: &[Input],
        normalize: bool,
        shape: &[i64],
        out: &mut [f32],
    ) -> Result<()> {
        self.check_has(graph)?;
        self.check_running(runs)?;
        let _inside = exit::enter().ok_or_else(ending)?;
        let session = self.session_for(graph, inputs)?;
        self.sessions.weights.check()?;
        let tokens = inputs.iter().map(|input| input.shape.iter().take(2).product::<i64>()).max().unwrap_or(0);
        // A run of more than our own batches takes so long that the time to ask for the memory again does not count.
        let large = self.memory == Memory::Small || tokens > TOKENS_PER_BATCH as i64;
        let shrink = large && self.provider == Provider::Cpu;
        let outcome = session.run(inputs, graph.output(normalize), shape, out, runs, shrink);
        // Kernels make static objects when they first run.
        self.sessions.watched[graph as usize].get_or_init(exit::watch);
        outcome.map_err(|fault| if runs.is_cancelled() { cancelled() } else { self.cannot_run(graph, &fault) })
    }

    fn check_running(&self, runs: &Runs) -> Result<()> {
        if runs.is_cancelled() {
            Err(cancelled())
        } else {
            Ok(())
        }
    }

    fn shrink(&self, scratch: &mut Scratch) {
        if self.memory == Memory::Small {
            *scratch = Scratch::default();
        }
    }

    fn session(&self, graph: Graph) -> Result<&Session> {
        self.opened(&self.sessions.open[graph as usize], || self.load(graph))
    }

    /// The session of an engine if one takes exactly these inputs, and else that of the graph.
    fn session_for(&self, graph: Graph, inputs: &[Input]) -> Result<&Session> {
        let sizes = |axis: usize| inputs[0].shape[axis] as usize;
        match self.engine(graph, sizes(0), sizes(1)) {
            Some((engine, slot)) if engine.length as usize == sizes(1) => {
                self.opened(slot, || self.load_engine(graph, engine))
            }
            _ => self.session(graph),
        }
    }

    /// The session in a slot, which the first caller opens.
    fn opened<'a>(
        &'a self,
        slot: &'a OnceLock<Session>,
        load: impl FnOnce() -> Result<Session>,
    ) -> Result<&'a Session> {
        if let Some(session) = slot.get() {
            return Ok(session);
        }
        let _opening = self.sessions.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = slot.get() {
            return Ok(session);
        }
        let session = load()?;
        exit::watch();
        Ok(slot.get_or_init(|| session))
    }

    fn load_engine(&self, graph: Graph, engine: &Engine) -> Result<Session> {
        self.bundle.check_unchanged()?;
        let options = SessionOptions { provider: self.provider, ..self.options };
        let place = engine.plan.display().to_string();
        Session::open_compiled(self.runtime, &engine.plan, &options)
            .map_err(|fault| self.cannot_open(graph, &place, &fault))
    }

    fn load(&self, graph: Graph) -> Result<Session> {
        self.check_has(graph)?;
        let entry = self.bundle.manifest.graph(graph.name(), &self.precision).expect("every graph has the precision");
        self.bundle.check_unchanged()?;
        let model = self.bundle.read(&entry.file)?;
        let weights = self.weights(&model, &entry.file)?;
        let session = Session::open(self.runtime, &model, weights, &self.options, self.sessions.prepacked.as_ref())
            .map_err(|fault| self.cannot_open(graph, &entry.file, &fault))?;
        // A session packs all of its weights before it finds those that another one has packed, and drops its own.
        self.sessions.weights.release();
        release_free_memory();
        self.bundle.check_unchanged()?;
        self.check_interface(&session, entry)?;
        Ok(session)
    }

    /// The external weights of a serialised graph, in mapped files.
    fn weights(&self, model: &[u8], graph: &str) -> Result<Vec<Weight>> {
        let invalid = |fault: String| {
            let message = format!("{} {fault}; export the bundle again.", self.bundle.file(graph).display());
            Error::new(Status::BundleInvalid, message)
        };
        let externals = onnx::externals(model).map_err(|fault| invalid(format!("is no ONNX graph ({fault})")))?;
        let mut weights = Vec::with_capacity(externals.len());
        for mut external in externals {
            let file = self.sessions.weights.file(&self.bundle, &external.location, graph)?;
            let available = (file.bytes().len() as u64).checked_sub(external.offset);
            let length = external.length.or(available);
            if available.is_none() || length > available {
                return Err(invalid(format!("reads past the end of {}", external.location)));
            }
            external.length = length;
            weights.push(Weight { external, file });
        }
        Ok(weights)
    }

    fn check_interface(&self, session: &Session, entry: &GraphFile) -> Result<()> {
        for (role, actual, expected) in
            [("inputs", session.inputs(), &entry.inputs), ("outputs", session.outputs(), &entry.outputs)]
        {
            let sorted = |specs: &[crate::manifest::TensorSpec]| {
                let mut described: Vec<String> = specs.iter().map(describe).collect();
                described.sort();
                described
            };
            let (actual, expected) = (sorted(actual), sorted(expected));
            if actual != expected {
                let message = format!(
                    "{} has the {role} {}, and its manifest says {}; export the bundle again.",
                    self.bundle.file(&entry.file).display(),
                    joined(actual),
                    joined(expected)
                );
                return Err(Error::new(Status::BundleInvalid, message));
            }
        }
        Ok(())
    }

    fn cannot_open(&self, graph: Graph, file: &str, fault: &Fault) -> Error {
        let (name, version) = (graph.name(), &self.runtime.version);
        let reason = reason(fault);
        if fault.code == NOT_IMPLEMENTED || (fault.code == INVALID_GRAPH && self.precision != "fp32") {
            let precisions = self.bundle.manifest.precisions();
            let others = joined(precisions.into_iter().filter(|other| *other != self.precision));
            let others = if others.is_empty() { "it has none, so export one" } else { &others };
            let message = format!(
                "onnxruntime {version} has nothing to run the {name} graph in {} with on this device; use another \
                 precision of the bundle ({others}).",
                self.precision
            );
            return Error::new(Status::PrecisionUnsupported, message);
        }
        if lacks_memory(fault) {
            let message = format!(
                "memory ran out while the {name} graph was opened; use a machine with more memory, or a lower \
                 precision."
            );
            return Error::new(Status::OutOfMemory, message);
        }
        if self.provider != Provider::Cpu && ![INVALID_ARGUMENT, INVALID_GRAPH, INVALID_PROTOBUF].contains(&fault.code)
        {
            let message = format!(
                "onnxruntime could not open the {name} graph on the GPU ({reason}); check the GPU's number, its memory \
                 and its driver with nvidia-smi, or use device 'cpu'."
            );
            return Error::new(Status::DeviceFailed, message);
        }
        let message = format!(
            "{} cannot be opened by onnxruntime {version} ({reason}); export the bundle again.",
            self.bundle.file(file).display()
        );
        Error::new(Status::BundleInvalid, message)
    }

    fn cannot_run(&self, graph: Graph, fault: &Fault) -> Error {
        let (name, reason) = (graph.name(), reason(fault));
        if lacks_memory(fault) {
            let message = format!(
                "memory ran out in the {name} graph; use a smaller batch_size or max_num_patches, or a machine with \
                 more memory."
            );
            return Error::new(Status::OutOfMemory, message);
        }
        // A CPU does not fail: the graph and its manifest do not fit each other.
        if self.provider == Provider::Cpu || fault.code == INVALID_ARGUMENT {
            let message = format!(
                "the {name} graph does not take what its manifest promises ({reason}); export the bundle again."
            );
            return Error::new(Status::BundleInvalid, message);
        }
        let message = format!("the device failed in the {name} graph ({reason}); check it, or use device 'cpu'.");
        Error::new(Status::DeviceFailed, message)
    }
}

/// onnxruntime's codes of errors.
const INVALID_ARGUMENT: i32 = 2;
const INVALID_PROTOBUF: i32 = 7;
const NOT_IMPLEMENTED: i32 = 9;
const INVALID_GRAPH: i32 = 10;

fn lacks_memory(fault: &Fault) -> bool {
    let message = fault.message.to_ascii_lowercase();
    ["allocat", "out of memory", "bad_alloc"].iter().any(|words| message.contains(words))
}

/// onnxruntime's first sentence, as part of a sentence of ours.
fn reason(fault: &Fault) -> String {
    let first = fault.message.trim().lines().next().unwrap_or("");
    let sentence = first.split(". ").next().unwrap_or("").trim_end_matches('.');
    shortened(sentence, 300)
}

fn ending() -> Error {
    let message = "the process is ending, so that its calls are cancelled; end the threads that make calls before it.";
    Error::new(Status::Cancelled, message)
}

fn cancelled() -> Error {
    Error::new(Status::Cancelled, "the call was cancelled; reset its context before the next call.")
}

fn cannot_prepare(fault: Fault) -> Error {
    let message = format!("onnxruntime failed before a graph was opened ({}); report it.", reason(&fault));
    Error::new(Status::Internal, message)
}

/// Writes the patches of an image, of `grid` patches of `patch` × `patch` pixels, to the front of `out`.
pub fn resize_to_patches(pixels: &Pixels, grid: Grid, patch: u32, filter: Filter, out: &mut [u8]) -> Result<()> {
    if grid.rows == 0 || grid.columns == 0 || patch == 0 {
        let message = format!(
            "a grid of {}×{} patches of {patch}×{patch} pixels is empty; pass positive numbers.",
            grid.rows, grid.columns
        );
        return Err(Error::new(Status::ArgumentInvalid, message));
    }
    let side = product(patch as usize, patch as usize)?;
    let bytes = product(product(grid.rows as usize, grid.columns as usize)?, product(side, 3)?)?;
    let out = room(out, bytes, "bytes")?;
    patches::write_patches(pixels, grid, patch, filter, &mut patches::Scratch::default(), out)
}

fn open_tokenizer(bundle: &Bundle) -> Result<Tokenizer> {
    let spec = &bundle.manifest.text;
    let shortest = spec.walk_types.iter().map(|(_, kind)| kind.length).min().unwrap_or(0);
    Tokenizer::from_json(&bundle.read(&spec.tokenizer)?, &spec.tokenizer, shortest as usize)
}

/// Number of patches of a grid.
pub fn cells(grid: Grid) -> usize {
    grid.rows as usize * grid.columns as usize
}

/// The front of the caller's memory; refuses less than `needed`.
fn room<'a, T>(out: &'a mut [T], needed: usize, unit: &str) -> Result<&'a mut [T]> {
    let available = out.len();
    out.get_mut(..needed).ok_or_else(|| {
        let message =
            format!("the memory for the result holds {available} {unit}, and {needed} are needed; pass more.");
        Error { needed: Some(needed as u64), ..Error::new(Status::BufferTooSmall, message) }
    })
}

/// a · b, if a size of memory can be as large.
pub fn product(a: usize, b: usize) -> Result<usize> {
    a.checked_mul(b).filter(|size| *size <= isize::MAX as usize).ok_or_else(too_large)
}

/// Adds `size` zeros to the end of a vector, and gives them.
pub fn append<T: Default + Clone>(vector: &mut Vec<T>, size: usize) -> Result<&mut [T]> {
    vector.try_reserve(size).map_err(|_| too_large())?;
    let start = vector.len();
    vector.resize(start + size, T::default());
    Ok(&mut vector[start..])
}

fn too_large() -> Error {
    Error::new(Status::OutOfMemory, "the machine has no memory for so many inputs; pass fewer in one call.")
}
