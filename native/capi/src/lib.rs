//! The C interface: conversions and guards around `fgclip-rt-core`. Its manual is `include/fgclip_rt.h`.

#![allow(missing_docs, non_camel_case_types)]

mod guard;
mod types;

use std::ffi::{c_char, c_void, CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use fgclip_rt_core::boxes::{self, BoxFormat};
use fgclip_rt_core::device::Device;
use fgclip_rt_core::error::{Error, Result, Status};
use fgclip_rt_core::exit;
use fgclip_rt_core::grid::Grid;
use fgclip_rt_core::interface::Graph;
use fgclip_rt_core::masks::{self, Masks};
use fgclip_rt_core::model::{
    append, cells, product, resize_to_patches, ImageRequest, Layout, Memory, Model, Options, Scratch, TextRequest,
};
use fgclip_rt_core::patches::{Filter, PixelFormat, Pixels};
use fgclip_rt_core::runtime;
use fgclip_rt_core::session::Runs;

use crate::guard::{caught, export};
pub use crate::types::*;

/// `fgclip_model`. Contexts hold it too, so that it may be closed before them.
pub struct fgclip_model {
    model: Arc<Model>,
    /// JSON that ends in NUL.
    manifest: Vec<u8>,
    info: Vec<u8>,
}

/// `fgclip_context`.
pub struct fgclip_context {
    model: Arc<Model>,
    runs: Runs,
    scratch: Mutex<Scratch>,
}

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("a version has no NUL"),
};
const ABI_VERSION: u32 = 1;

#[unsafe(no_mangle)]
pub extern "C" fn fgclip_version() -> *const c_char {
    VERSION.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn fgclip_abi_version() -> u32 {
    ABI_VERSION
}

#[unsafe(no_mangle)]
pub extern "C" fn fgclip_status_name(status: i32) -> *const c_char {
    status_name(status).as_ptr()
}

/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgclip_model_close(model: *mut fgclip_model) {
    // SAFETY: as the header's reader promises.
    unsafe { release(model) };
}

/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgclip_context_free(context: *mut fgclip_context) {
    // SAFETY: as the header's reader promises.
    unsafe { release(context) };
}

/// # Safety
/// `handle` must be NULL or come from `Box::into_raw`.
unsafe fn release<T>(handle: *mut T) {
    // A forked child leaves what it inherited alone: its sessions would wait for threads that are not there.
    if handle.is_null() || runtime::forked() {
        return;
    }
    // At the end of the process, what onnxruntime would release with is not there any more.
    let Some(_inside) = exit::enter() else { return };
    // SAFETY: as the caller promises.
    let handle = unsafe { Box::from_raw(handle) };
    let _ = caught(move || {
        drop(handle);
        Ok(())
    });
}

export! {
    fn fgclip_set_log(log: fgclip_log_function, user: *mut c_void) {
        let receiver = log.map(|log| {
            let user = User(user);
            let receiver = move |severity: i32, message: &CStr| {
                log(user.pointer(), severity, message.as_ptr());
            };
            Box::new(receiver) as runtime::Log
        });
        runtime::set_log(receiver);
        Ok(())
    }

    fn fgclip_model_open(bundle: *const c_char, options: *const fgclip_options, model: *mut *mut fgclip_model) {
        let target = writable(model, "model")?;
        let bundle = path(bundle).ok_or_else(|| invalid("bundle is NULL; pass the path of a bundle's folder."))?;
        let opened = Model::open(&bundle, &read_options(&read(options)?)?)?;
        let text = |json: &str| [json.as_bytes(), b"\0"].concat();
        let (manifest, info) = (text(opened.manifest_json()), text(opened.info_json()));
        target.write(Box::into_raw(Box::new(fgclip_model { model: Arc::new(opened), manifest, info })));
        Ok(())
    }

    fn fgclip_model_dim(model: *const fgclip_model, dim: *mut u32) {
        let dim = writable(dim, "dim")?;
        dim.write(given(model, "model")?.model.dim() as u32);
        Ok(())
    }

    fn fgclip_model_manifest(model: *const fgclip_model, json: *mut *const c_char) {
        let json = writable(json, "json")?;
        json.write(given(model, "model")?.manifest.as_ptr().cast());
        Ok(())
    }

    fn fgclip_model_runtime_info(model: *const fgclip_model, json: *mut *const c_char) {
        let json = writable(json, "json")?;
        json.write(given(model, "model")?.info.as_ptr().cast());
        Ok(())
    }

    fn fgclip_model_token_count(model: *const fgclip_model, walk_type: *const c_char, count: *mut u32) {
        let count = writable(count, "count")?;
        count.write(given(model, "model")?.model.walk_type(kind(walk_type)?)?.length);
        Ok(())
    }

    fn fgclip_model_grid(
        model: *const fgclip_model,
        width: u32,
        height: u32,
        max_num_patches: u32,
        grid: *mut fgclip_grid,
    ) {
        let (grid, model) = (writable(grid, "grid")?, &given(model, "model")?.model);
        grid.write(c_grid(model, model.layout(width, height, nonzero(max_num_patches))?));
        Ok(())
    }

    fn fgclip_model_warm(model: *const fgclip_model, graphs: u32) {
        let model = &given(model, "model")?.model;
        let unknown = graphs >> Graph::ALL.len();
        if unknown != 0 {
            return Err(invalid(format!("graphs is {graphs:#x}; join flags FGCLIP_GRAPH_..., or pass 0 for all.")));
        }
        for (bit, graph) in Graph::ALL.into_iter().enumerate() {
            if graphs >> bit & 1 == 1 || (graphs == 0 && model.has(graph)) {
                model.warm(graph)?;
            }
        }
        Ok(())
    }

    fn fgclip_context_new(model: *const fgclip_model, context: *mut *mut fgclip_context) {
        let target = writable(context, "context")?;
        let model = given(model, "model")?.model.clone();
        let runs = model.runs()?;
        let context = fgclip_context { model, runs, scratch: Mutex::default() };
        target.write(Box::into_raw(Box::new(context)));
        Ok(())
    }

    fn fgclip_context_cancel(context: *const fgclip_context) {
        given(context, "context")?.runs.cancel();
        Ok(())
    }

    fn fgclip_context_reset(context: *mut fgclip_context) {
        given(context, "context")?.runs.reset();
        Ok(())
    }

    fn fgclip_embed_images(
        context: *mut fgclip_context,
        images: *const fgclip_image,
        count: usize,
        request: *const fgclip_image_request,
        out: *mut f32,
        capacity: usize,
    ) {
        let (context, request) = (given(context, "context")?, read(request)?);
        let images = list(images, count, "images")?;
        let pixels = images.iter().enumerate().map(|(index, image)| pixels(image).map_err(|error| error.at(index)));
        let pixels = pixels.collect::<Result<Vec<_>>>()?;
        let request = ImageRequest {
            max_num_patches: nonzero(request.max_num_patches),
            batch_size: nonzero(request.batch_size).map(|size| size as usize),
            features: flag(request.features, "features")?,
        };
        let out = memory(out, capacity, "out")?;
        let mut scratch = context.scratch()?;
        context.model.embed_images(&mut scratch, &context.runs, &pixels, &request, out)
    }

    fn fgclip_embed_texts(
        context: *mut fgclip_context,
        texts: *const *const c_char,
        count: usize,
        request: *const fgclip_text_request,
        out: *mut f32,
        capacity: usize,
    ) {
        let (context, request) = (given(context, "context")?, read(request)?);
        let texts = read_texts(texts, count, &request)?;
        let out = memory(out, capacity, "out")?;
        let truncated = truncated(&request, count)?;
        let request = text_request(&request)?;
        let _scratch = context.scratch()?;
        context.model.embed_texts(&context.runs, &texts, &request, out, truncated)
    }

    fn fgclip_dense(
        context: *mut fgclip_context,
        image: *const fgclip_image,
        request: *const fgclip_image_request,
        out: *mut f32,
        capacity: usize,
        grid: *mut fgclip_grid,
    ) {
        let (context, request) = (given(context, "context")?, read(request)?);
        let (image, out) = (pixels(given(image, "image")?)?, memory(out, capacity, "out")?);
        let features = flag(request.features, "features")?;
        let (model, most) = (&context.model, nonzero(request.max_num_patches));
        let mut scratch = context.scratch()?;
        let layout = model.dense_features(&mut scratch, &context.runs, &image, most, out)?;
        if !features {
            model.normalize(&mut out[..cells(layout.grid) * model.dim()]);
        }
        if !grid.is_null() {
            grid.write(c_grid(model, layout));
        }
        Ok(())
    }

    fn fgclip_regions(
        context: *mut fgclip_context,
        image: *const fgclip_image,
        boxes: *const f64,
        count: usize,
        request: *const fgclip_region_request,
        out: *mut f32,
        capacity: usize,
    ) {
        let (context, request) = (given(context, "context")?, read(request)?);
        let (image, out) = (given(image, "image")?, memory(out, capacity, "out")?);
        let model = &context.model;
        let shares = model.box_shares()?;
        let format = match request.box_format {
            0 => BoxFormat::Xyxy,
            1 => BoxFormat::Xywh,
            2 => BoxFormat::Normalized,
            other => return Err(unknown("box_format", other)),
        };
        let boxes = list(boxes, product(count, 4)?, "boxes")?.as_chunks().0;
        let layout = model.layout(image.width, image.height, nonzero(request.max_num_patches))?;
        let boxes = boxes::grid_boxes(boxes, image.width, image.height, layout.grid, format, shares)?;
        let dense = Dense { values: request.dense, count: request.dense_count };
        let features = flag(request.features, "features")?;
        let mut scratch = context.scratch()?;
        let dense = dense.of(context, &mut scratch, image, nonzero(request.max_num_patches), layout.grid)?;
        model.regions(&context.runs, &dense, layout.grid, &boxes, features, out)
    }

    fn fgclip_masks(
        context: *mut fgclip_context,
        image: *const fgclip_image,
        masks: *const c_void,
        count: usize,
        request: *const fgclip_mask_request,
        out: *mut f32,
        capacity: usize,
    ) {
        let (context, request) = (given(context, "context")?, read(request)?);
        let (image, out) = (given(image, "image")?, memory(out, capacity, "out")?);
        let model = &context.model;
        model.check_has(Graph::Mask)?;
        let layout = model.layout(image.width, image.height, nonzero(request.max_num_patches))?;
        let (width, height) = (request.mask_width, request.mask_height);
        let size = product(product(width as usize, height as usize)?, count)?;
        let masks = match request.mask_type {
            0 => Masks::Float32(list(masks.cast(), size, "masks")?),
            1 => Masks::Bool(list(masks.cast(), size, "masks")?),
            other => return Err(unknown("mask_type", other)),
        };
        let weights = masks::mask_weights(masks, count, (width, height), (image.width, image.height), layout.grid)?;
        let dense = Dense { values: request.dense, count: request.dense_count };
        let features = flag(request.features, "features")?;
        let mut scratch = context.scratch()?;
        let dense = dense.of(context, &mut scratch, image, nonzero(request.max_num_patches), layout.grid)?;
        model.masks(&context.runs, &dense, layout.grid, &weights, features, out)
    }

    fn fgclip_logits(
        model: *const fgclip_model,
        images: *const f32,
        image_count: usize,
        texts: *const f32,
        text_count: usize,
        out: *mut f32,
        capacity: usize,
    ) {
        let model = &given(model, "model")?.model;
        let images = list(images, product(image_count, model.dim())?, "images")?;
        let texts = list(texts, product(text_count, model.dim())?, "texts")?;
        model.logits(images, texts, memory(out, capacity, "out")?)
    }

    fn fgclip_probabilities(
        model: *const fgclip_model,
        images: *const f32,
        image_count: usize,
        texts: *const f32,
        text_count: usize,
        out: *mut f32,
        capacity: usize,
    ) {
        let model = &given(model, "model")?.model;
        let images = list(images, product(image_count, model.dim())?, "images")?;
        let texts = list(texts, product(text_count, model.dim())?, "texts")?;
        model.probabilities(images, texts, memory(out, capacity, "out")?)
    }

    fn fgclip_tokenize(
        model: *const fgclip_model,
        texts: *const *const c_char,
        count: usize,
        request: *const fgclip_text_request,
        ids: *mut i32,
        mask: *mut i32,
        capacity: usize,
    ) {
        let (model, request) = (&given(model, "model")?.model, read(request)?);
        let texts = read_texts(texts, count, &request)?;
        let mut truncated = truncated(&request, count)?;
        let kind = model.walk_type(text_request(&request)?.walk_type)?;
        let (length, ids) = (kind.length as usize, memory(ids, capacity, "ids")?);
        let mut mask = if mask.is_null() { None } else { Some(memory(mask, capacity, "mask")?) };
        let needed = product(count, length)?;
        if ids.len() < needed {
            let message = format!("the memory for the result holds {capacity} ids, and {needed} are needed; pass more.");
            return Err(Error { needed: Some(needed as u64), ..Error::new(Status::BufferTooSmall, message) });
        }
        for (index, text) in texts.iter().enumerate() {
            let row = index * length..(index + 1) * length;
            let mask = mask.as_deref_mut().map(|mask| &mut mask[row.clone()]);
            let cut = model.tokenize(text, kind, &mut ids[row], mask).map_err(|error| error.at(index))?;
            if let Some(truncated) = truncated.as_deref_mut() {
                truncated[index] = u8::from(cut);
            }
        }
        Ok(())
    }

    fn fgclip_embed_tokens(
        context: *mut fgclip_context,
        ids: *const i32,
        mask: *const i32,
        count: usize,
        request: *const fgclip_text_request,
        out: *mut f32,
        capacity: usize,
    ) {
        let (context, request) = (given(context, "context")?, read(request)?);
        let request = text_request(&request)?;
        let size = product(count, context.model.walk_type(request.walk_type)?.length as usize)?;
        let ids = list(ids, size, "ids")?;
        let mask = if mask.is_null() { None } else { Some(list(mask, size, "mask")?) };
        let out = memory(out, capacity, "out")?;
        let _scratch = context.scratch()?;
        context.model.embed_tokens(&context.runs, ids, mask, &request, out)
    }

    fn fgclip_prepare_image(
        context: *mut fgclip_context,
        image: *const fgclip_image,
        request: *const fgclip_image_request,
        out: *mut u8,
        capacity: usize,
        grid: *mut fgclip_grid,
    ) {
        let (context, request) = (given(context, "context")?, read(request)?);
        let (image, out) = (pixels(given(image, "image")?)?, memory(out, capacity, "out")?);
        let (model, most) = (&context.model, nonzero(request.max_num_patches));
        let layout = model.prepare(&mut *context.scratch()?, &image, most, out)?;
        if !grid.is_null() {
            grid.write(c_grid(model, layout));
        }
        Ok(())
    }

    fn fgclip_resize_to_patches(
        image: *const fgclip_image,
        rows: u32,
        columns: u32,
        patch_size: u32,
        filter: i32,
        out: *mut u8,
        capacity: usize,
    ) {
        let (image, out) = (pixels(given(image, "image")?)?, memory(out, capacity, "out")?);
        let filter = match filter {
            0 => Filter::Bilinear,
            1 => Filter::Bicubic,
            other => return Err(unknown("filter", other)),
        };
        resize_to_patches(&image, Grid { rows, columns }, patch_size, filter, out)
    }

    fn fgclip_embed_patches(
        context: *mut fgclip_context,
        patches: *const u8,
        size: usize,
        grids: *const fgclip_grid,
        count: usize,
        request: *const fgclip_image_request,
        out: *mut f32,
        capacity: usize,
    ) {
        let (context, request) = (given(context, "context")?, read(request)?);
        let patches = list(patches, size, "patches")?;
        let grids = list(grids, count, "grids")?.iter().map(|grid| Grid { rows: grid.rows, columns: grid.columns });
        let grids: Vec<Grid> = grids.collect();
        let (features, out) = (flag(request.features, "features")?, memory(out, capacity, "out")?);
        let mut scratch = context.scratch()?;
        context.model.embed_patches(&mut scratch, &context.runs, patches, &grids, features, out)
    }
}

impl fgclip_context {
    /// The memory of the call in progress; refuses a second call at the same time.
    fn scratch(&self) -> Result<MutexGuard<'_, Scratch>> {
        match self.scratch.try_lock() {
            Ok(scratch) => Ok(scratch),
            // A panic left it in an unknown state, and it holds nothing of worth.
            Err(TryLockError::Poisoned(poisoned)) => {
                let mut scratch = poisoned.into_inner();
                *scratch = Scratch::default();
                self.scratch.clear_poison();
                Ok(scratch)
            }
            Err(TryLockError::WouldBlock) => {
                Err(invalid("a context is used by two threads at once; make a context for each thread."))
            }
        }
    }
}

/// Dense features that a caller has already, or not.
struct Dense {
    values: *const f32,
    count: usize,
}

impl Dense {
    /// The caller's, or those that the tower gives now.
    ///
    /// # Safety
    /// The values must be valid for reads.
    unsafe fn of<'a>(
        self,
        context: &fgclip_context,
        scratch: &mut Scratch,
        image: &fgclip_image,
        max_num_patches: Option<u32>,
        grid: Grid,
    ) -> Result<std::borrow::Cow<'a, [f32]>> {
        let needed = product(cells(grid), context.model.dim())?;
        if !self.values.is_null() {
            if self.count != needed {
                let message = format!(
                    "dense has {} numbers, and this image's features have {needed}; pass what fgclip_dense gave for it.",
                    self.count
                );
                return Err(invalid(message));
            }
            // SAFETY: as the caller promises.
            return Ok(unsafe { list(self.values, self.count, "dense")? }.into());
        }
        // SAFETY: as the caller promises.
        let image = unsafe { pixels(image)? };
        let mut values = Vec::new();
        append(&mut values, needed)?;
        context.model.dense_features(scratch, &context.runs, &image, max_num_patches, &mut values)?;
        Ok(values.into())
    }
}

/// The `user` pointer of a log, which the header's reader has promised to share between threads.
struct User(*mut c_void);

// SAFETY: we only pass it on.
unsafe impl Send for User {}
unsafe impl Sync for User {}

impl User {
    fn pointer(&self) -> *mut c_void {
        self.0
    }
}

fn status_name(status: i32) -> &'static CStr {
    match status {
        0 => c"ok",
        _ => Status::ALL.iter().find(|known| **known as i32 == status).map_or(c"unknown", |known| known.name()),
    }
}

fn read_options(given: &fgclip_options) -> Result<Options> {
    let choice = |value: i32, name: &str| match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(unknown(name, other)),
    };
    let device = match given.device {
        0 => Device::Cpu,
        1 => Device::Auto,
        2 => Device::Cuda,
        3 => Device::TensorRt,
        other => return Err(unknown("device", other)),
    };
    Ok(Options {
        device,
        device_number: given.device_number,
        threads: nonzero(given.threads),
        memory: if choice(given.memory, "memory")? { Memory::Small } else { Memory::Fast },
        no_spinning: choice(given.spinning, "spinning")?,
        trust_files: choice(given.check, "check")?,
        separate_weights: choice(given.weights, "weights")?,
        // SAFETY: the header asks for texts that end in NUL.
        precision: unsafe { word(given.precision, "precision")? }.map(str::to_owned),
        onnxruntime: path(given.onnxruntime),
        text_bytes: (given.max_text_bytes != 0).then(|| usize::try_from(given.max_text_bytes).unwrap_or(usize::MAX)),
    })
}

fn path(text: *const c_char) -> Option<PathBuf> {
    // SAFETY: the header asks for texts that end in NUL.
    (!text.is_null()).then(|| Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(text) }.to_bytes())).to_owned())
}

fn kind<'a>(walk_type: *const c_char) -> Result<&'a str> {
    // SAFETY: the header asks for texts that end in NUL.
    Ok(unsafe { word(walk_type, "walk_type")? }.unwrap_or("short"))
}

fn text_request(given: &fgclip_text_request) -> Result<TextRequest<'_>> {
    Ok(TextRequest { walk_type: kind(given.walk_type)?, features: flag(given.features, "features")? })
}

/// # Safety
/// The texts must be as the header says.
unsafe fn read_texts<'a>(
    texts: *const *const c_char,
    count: usize,
    request: &fgclip_text_request,
) -> Result<Vec<&'a str>> {
    // SAFETY: as the caller promises.
    unsafe {
        let texts = list(texts, count, "texts")?;
        let lengths = if request.lengths.is_null() { None } else { Some(list(request.lengths, count, "lengths")?) };
        let text = |index: usize| {
            if texts[index].is_null() {
                return Err(invalid(format!("texts[{index}] is NULL; pass a text.")).at(index));
            }
            let bytes = match lengths {
                Some(lengths) => list(texts[index].cast::<u8>(), lengths[index], "a text")?,
                None => CStr::from_ptr(texts[index]).to_bytes(),
            };
            std::str::from_utf8(bytes).map_err(|error| {
                let message = format!("text {index} is not UTF-8 from byte {} on; repair it.", error.valid_up_to());
                Error::new(Status::TextInvalid, message).at(index)
            })
        };
        (0..count).map(text).collect()
    }
}

/// # Safety
/// The request must be as the header says.
unsafe fn truncated<'a>(request: &fgclip_text_request, count: usize) -> Result<Option<&'a mut [u8]>> {
    if request.truncated.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller promises.
    unsafe { memory(request.truncated, count, "truncated").map(Some) }
}

/// # Safety
/// The pixels must be as the header says.
unsafe fn pixels(image: &fgclip_image) -> Result<Pixels<'_>> {
    let format = match image.format {
        0 => PixelFormat::Rgb,
        1 => PixelFormat::Bgr,
        2 => PixelFormat::Rgba,
        3 => PixelFormat::Bgra,
        4 => PixelFormat::Gray,
        other => {
            let message = format!("an image has the format {other}; pass one of FGCLIP_FORMAT_....");
            return Err(Error::new(Status::ImageUnsupported, message));
        }
    };
    if image.reserved != 0 {
        return Err(invalid(format!("fgclip_image.reserved is {}; leave it 0.", image.reserved)));
    }
    let row = product(image.width as usize, format.channels())?;
    let stride = if image.stride == 0 { row } else { image.stride };
    // The last row need not have the bytes behind its pixels.
    let above = (image.height as usize).saturating_sub(1);
    let size = product(stride, above)?.saturating_add(row);
    let size = if image.height == 0 { 0 } else { size };
    // SAFETY: as the caller promises.
    let data = unsafe { list(image.data, size, "image.data")? };
    Pixels::new(data, image.width, image.height, stride, format)
}

fn c_grid(model: &Model, layout: Layout) -> fgclip_grid {
    let Layout { grid, bucket } = layout;
    let bytes = model.patch_bytes(grid) as u64;
    fgclip_grid { rows: grid.rows, columns: grid.columns, bucket, reserved: 0, bytes }
}

fn nonzero(value: u32) -> Option<u32> {
    (value != 0).then_some(value)
}

fn flag(value: u32, name: &str) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(invalid(format!("{name} is {other}; pass 0 or 1."))),
    }
}

fn unknown(name: &str, value: i32) -> Error {
    invalid(format!("{name} is {value}, which this version does not know; pass one of the header's values."))
}
