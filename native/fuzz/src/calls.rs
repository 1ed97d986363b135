//! The functions of the header with sizes, values and memory of any kind, on the bundle that comes with the package.
//!
//! All memory is as large as the call says, so that AddressSanitizer sees who reaches beyond it. Sizes that are too large
//! for any memory are tried too, but never together with a pointer that would be followed.

use std::ffi::{c_char, CString};
use std::os::unix::ffi::OsStrExt;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use fgclip_rt::*;

use crate::{repository, Numbers};

const BUFFER_TOO_SMALL: i32 = 104;
const INTERNAL: i32 = 802;
const UNWRITTEN: f32 = -12345.0;

struct Opened {
    model: *mut fgclip_model,
    context: *mut fgclip_context,
    dim: usize,
}

// SAFETY: a model may be shared, and its context is used by one thread.
unsafe impl Send for Opened {}
unsafe impl Sync for Opened {}

fn opened() -> &'static Opened {
    static OPENED: OnceLock<Opened> = OnceLock::new();
    OPENED.get_or_init(|| {
        let path = repository("fgclip_rt/bundles/fg-clip2-pocket");
        let path = CString::new(path.as_os_str().as_bytes()).expect("a path has no NUL");
        let options = fgclip_options { threads: 1, ..request() };
        let mut opened = Opened { model: null_mut(), context: null_mut(), dim: 0 };
        let (mut error, mut dim) = (blank(), 0);
        // SAFETY: all pointers are valid, here and in the calls below.
        unsafe {
            let status = fgclip_model_open(path.as_ptr(), &options, &mut opened.model, &mut error);
            assert_eq!(status, 0, "name a libonnxruntime in FGCLIP_RT_ONNXRUNTIME: {}", sentence(&error));
            assert_eq!(fgclip_context_new(opened.model, &mut opened.context, &mut error), 0);
            assert_eq!(fgclip_model_dim(opened.model, &mut dim, &mut error), 0);
        }
        Opened { dim: dim as usize, ..opened }
    })
}

/// Up to four calls, one after another.
pub fn calls(data: &[u8]) {
    let mut numbers = Numbers(data);
    for _ in 0..4 {
        if numbers.is_empty() {
            break;
        }
        match numbers.below(9) {
            0 => images(&mut numbers),
            1 => texts(&mut numbers),
            2 => dense(&mut numbers),
            3 => regions(&mut numbers),
            4 => masks(&mut numbers),
            5 => tokens(&mut numbers),
            6 => patches(&mut numbers),
            7 => scores(&mut numbers),
            _ => model(&mut numbers),
        }
    }
}

/// A struct of zeros that begins with its size.
fn request<T: Sized32>() -> T {
    let size = size_of::<T>() as u32;
    // SAFETY: zeros are valid, and the size comes first.
    unsafe {
        let mut value = std::mem::zeroed::<T>();
        (&raw mut value).cast::<u32>().write(size);
        value
    }
}

fn blank() -> fgclip_error {
    let size = size_of::<fgclip_error>() as u32;
    fgclip_error { struct_size: size, status: -1, index: 0, needed: 0, message: [1; 512] }
}

fn sentence(error: &fgclip_error) -> String {
    let bytes: Vec<u8> = error.message.iter().map(|char| *char as u8).take_while(|byte| *byte != 0).collect();
    String::from_utf8(bytes).expect("messages are UTF-8")
}

/// Makes sure that a call reported as the header says, and gives its status.
fn checked(status: i32, error: &fgclip_error) -> i32 {
    let message = sentence(error);
    assert_eq!(status, error.status);
    assert_ne!(status, INTERNAL, "{message}");
    assert_eq!(status == 0, message.is_empty(), "{status}: {message}");
    assert_eq!(error.needed > 0, status == BUFFER_TOO_SMALL, "{status}: {message}");
    assert!(error.index >= -1);
    status
}

/// Makes a call with memory for `capacity` floats, and again with as many as it needs if they are too few.
fn with_floats(capacity: usize, call: impl Fn(*mut f32, usize, *mut fgclip_error) -> i32) {
    let mut error = blank();
    let mut out = vec![UNWRITTEN; capacity];
    if checked(call(out.as_mut_ptr(), capacity, &mut error), &error) == BUFFER_TOO_SMALL {
        let needed = error.needed as usize;
        assert!(needed > capacity, "{needed} are needed, and {capacity} are too few");
        assert!(out.iter().all(|value| *value == UNWRITTEN), "a call that was refused wrote");
        out = vec![UNWRITTEN; needed];
        assert_ne!(checked(call(out.as_mut_ptr(), needed, &mut error), &error), BUFFER_TOO_SMALL);
    }
}

/// Mostly a good value, now and then a wrong one.
fn rarely(numbers: &mut Numbers, good: u32) -> u32 {
    match numbers.byte() {
        0 => 1,
        1 => 2,
        2 => u32::MAX,
        3 => u32::from(numbers.byte()),
        _ => good,
    }
}

fn capacity(numbers: &mut Numbers, right: usize) -> usize {
    match numbers.byte() % 8 {
        0 => numbers.below(300) as usize,
        1 => right.saturating_sub(1),
        2 => right + 1,
        _ => right,
    }
}

/// An image, and the memory of its pixels.
fn image(numbers: &mut Numbers) -> (fgclip_image, Vec<u8>) {
    let (width, height, format) = (numbers.below(90), numbers.below(90), numbers.below(6) as i32);
    let step = [3, 3, 4, 4, 1, 3][format as usize];
    let row = width as usize * step;
    let stride = if numbers.byte() < 40 { 0 } else { row + numbers.below(9) as usize };
    let between = if stride == 0 { row } else { stride };
    let data = if height == 0 { Vec::new() } else { numbers.noise(between * (height as usize - 1) + row) };
    let stride = if numbers.byte() == 0 { [1, usize::MAX][width as usize % 2] } else { stride };
    let huge = stride == usize::MAX;
    let reserved = u32::from(numbers.byte() == 0);
    let pointer = if data.is_empty() || (huge && height < 2) { null() } else { data.as_ptr() };
    (fgclip_image { data: pointer, stride, width, height, format, reserved }, data)
}

fn image_request(numbers: &mut Numbers) -> fgclip_image_request {
    let most = 1 + numbers.below(40);
    fgclip_image_request {
        max_num_patches: rarely(numbers, most),
        batch_size: numbers.below(4),
        features: rarely(numbers, 0),
        ..request()
    }
}

fn images(numbers: &mut Numbers) {
    let Opened { context, dim, .. } = *opened();
    let (list, _pixels): (Vec<_>, Vec<_>) = (0..numbers.below(4)).map(|_| image(numbers)).unzip();
    let asked = image_request(numbers);
    with_floats(capacity(numbers, list.len() * dim), |out, size, error| {
        // SAFETY: each list has its length.
        unsafe { fgclip_embed_images(context, list.as_ptr(), list.len(), &asked, out, size, error) }
    });
}

fn dense(numbers: &mut Numbers) {
    let Opened { context, dim, .. } = *opened();
    let ((image, _pixels), asked) = (image(numbers), image_request(numbers));
    with_floats(capacity(numbers, 20 * dim), |out, size, error| {
        // SAFETY: the image's memory is there.
        unsafe { fgclip_dense(context, &image, &asked, out, size, null_mut(), error) }
    });
}

fn number(numbers: &mut Numbers) -> f64 {
    match numbers.byte() % 16 {
        0 => f64::NAN,
        1 => f64::INFINITY,
        2 => -1e7,
        3 => f64::MAX,
        4 => f64::MIN_POSITIVE,
        5..8 => f64::from(numbers.byte()) / 256.0,
        _ => f64::from(numbers.below(900)) / 10.0,
    }
}

fn regions(numbers: &mut Numbers) {
    let Opened { context, dim, .. } = *opened();
    let (image, _pixels) = image(numbers);
    let boxes: Vec<f64> = (0..numbers.below(4) * 4).map(|_| number(numbers)).collect();
    let given = vec![0.5; numbers.below(2) as usize * numbers.below(20) as usize * dim];
    let asked = fgclip_region_request {
        max_num_patches: numbers.below(40),
        box_format: numbers.below(4) as i32,
        dense: if given.is_empty() { null() } else { given.as_ptr() },
        dense_count: given.len(),
        ..request()
    };
    with_floats(capacity(numbers, boxes.len() / 4 * dim), |out, size, error| {
        // SAFETY: each list has its length.
        unsafe { fgclip_regions(context, &image, boxes.as_ptr(), boxes.len() / 4, &asked, out, size, error) }
    });
}

/// The bundle has no masks, so that they are refused; the sizes come first.
fn masks(numbers: &mut Numbers) {
    let Opened { context, dim, .. } = *opened();
    let (image, _pixels) = image(numbers);
    let asked = fgclip_mask_request {
        mask_width: numbers.below(1 << 16) << 16,
        mask_height: numbers.below(1 << 16) << 16,
        ..request()
    };
    let count = numbers.below(1 << 16) as usize;
    with_floats(dim, |out, size, error| {
        // SAFETY: NULL is refused.
        unsafe { fgclip_masks(context, &image, null(), count, &asked, out, size, error) }
    });
}

/// Texts without an end, their lengths, and a request for them.
fn text_list(numbers: &mut Numbers) -> (Vec<Box<[u8]>>, Vec<usize>) {
    let mut texts: Vec<Box<[u8]>> = Vec::new();
    for _ in 0..numbers.below(4) {
        let size = (numbers.below(50) as usize).min(numbers.0.len());
        let (text, rest) = numbers.0.split_at(size);
        texts.push(text.into());
        numbers.0 = rest;
    }
    let lengths = texts.iter().map(|text| text.len()).collect();
    (texts, lengths)
}

fn text_request(numbers: &mut Numbers, lengths: &[usize], truncated: &mut [u8]) -> fgclip_text_request {
    const KINDS: [*const c_char; 5] =
        [null(), c"short".as_ptr(), c"long".as_ptr(), c"box".as_ptr(), c"\xff\xfe".as_ptr()];
    fgclip_text_request {
        features: rarely(numbers, 0),
        walk_type: KINDS[numbers.below(5) as usize],
        lengths: lengths.as_ptr(),
        truncated: if numbers.byte() < 128 { null_mut() } else { truncated.as_mut_ptr() },
        ..request()
    }
}

fn texts(numbers: &mut Numbers) {
    let Opened { context, dim, .. } = *opened();
    let (texts, lengths) = text_list(numbers);
    let pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr().cast()).collect();
    let mut truncated = vec![9; texts.len()];
    let asked = text_request(numbers, &lengths, &mut truncated);
    with_floats(capacity(numbers, texts.len() * dim), |out, size, error| {
        // SAFETY: each list has its length.
        unsafe { fgclip_embed_texts(context, pointers.as_ptr(), pointers.len(), &asked, out, size, error) }
    });
}

fn tokens(numbers: &mut Numbers) {
    let Opened { model, context, dim } = *opened();
    let (texts, lengths) = text_list(numbers);
    let pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr().cast()).collect();
    let mut truncated = vec![9; texts.len()];
    let asked = text_request(numbers, &lengths, &mut truncated);
    let mut length = 0;
    // SAFETY: each list has its length, here and below.
    unsafe { fgclip_model_token_count(model, asked.walk_type, &mut length, null_mut()) };
    let size = capacity(numbers, texts.len() * length as usize);
    let (mut ids, mut mask, mut error) = (vec![-1; size], vec![-1; size], blank());
    let masked = numbers.byte() < 128;
    let mask_pointer = if masked { mask.as_mut_ptr() } else { null_mut() };
    let status = unsafe {
        let (texts, ids) = (pointers.as_ptr(), ids.as_mut_ptr());
        fgclip_tokenize(model, texts, pointers.len(), &asked, ids, mask_pointer, size, &mut error)
    };
    if checked(status, &error) != 0 {
        return;
    }
    if numbers.byte() < 60 && !ids.is_empty() {
        let at = numbers.below(ids.len() as u32) as usize;
        ids[at] = i32::from_le_bytes([numbers.byte(), numbers.byte(), numbers.byte(), numbers.byte()]);
    }
    with_floats(capacity(numbers, texts.len() * dim), |out, size, error| unsafe {
        fgclip_embed_tokens(context, ids.as_ptr(), mask_pointer, texts.len(), &asked, out, size, error)
    });
}

fn patches(numbers: &mut Numbers) {
    let Opened { model, context, dim } = *opened();
    let ((image, _pixels), asked) = (image(numbers), image_request(numbers));
    let (mut grid, mut error) = (fgclip_grid { rows: 0, columns: 0, bucket: 0, reserved: 0, bytes: 0 }, blank());
    // SAFETY: all memory is there, here and below.
    let status =
        unsafe { fgclip_model_grid(model, image.width, image.height, asked.max_num_patches, &mut grid, &mut error) };
    checked(status, &error);
    let size = capacity(numbers, grid.bytes as usize);
    let mut bytes = vec![7; size];
    let status =
        unsafe { fgclip_prepare_image(context, &image, &asked, bytes.as_mut_ptr(), size, &mut grid, &mut error) };
    checked(status, &error);
    grid.rows = rarely(numbers, grid.rows);
    grid.columns = rarely(numbers, grid.columns);
    let count = numbers.below(3) as usize;
    let (grids, all) = (vec![grid; count], bytes.repeat(count));
    with_floats(capacity(numbers, count * dim), |out, size, error| unsafe {
        fgclip_embed_patches(context, all.as_ptr(), all.len(), grids.as_ptr(), count, &asked, out, size, error)
    });
}

fn scores(numbers: &mut Numbers) {
    let Opened { model, dim, .. } = *opened();
    let floats = |numbers: &mut Numbers, count: u32| -> Vec<f32> {
        let bits = numbers.noise(count as usize * dim * 4);
        bits.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let (image_count, text_count) = (numbers.below(4), numbers.below(4));
    let (images, texts) = (floats(numbers, image_count), floats(numbers, text_count));
    let function = if numbers.byte() < 128 { fgclip_logits } else { fgclip_probabilities };
    let (image_count, text_count) = (image_count as usize, text_count as usize);
    with_floats(capacity(numbers, image_count * text_count), |out, size, error| {
        // SAFETY: each list has its length.
        unsafe { function(model, images.as_ptr(), image_count, texts.as_ptr(), text_count, out, size, error) }
    });
    // Lengths that no memory has, without the memory.
    let mut error = blank();
    // SAFETY: NULL is refused, after the size.
    let status =
        unsafe { function(model, null(), usize::MAX / (1 + image_count), null(), 1, null_mut(), 0, &mut error) };
    assert_ne!(checked(status, &error), 0);
}

fn model(numbers: &mut Numbers) {
    let Opened { model, .. } = *opened();
    let mut error = blank();
    let mut grid = fgclip_grid { rows: 0, columns: 0, bucket: 0, reserved: 0, bytes: 0 };
    let side = |numbers: &mut Numbers| match numbers.byte() % 4 {
        0 => u32::MAX,
        1 => numbers.below(1 << 16) << 16,
        _ => numbers.below(3000),
    };
    let (width, height) = (side(numbers), side(numbers));
    let most = rarely(numbers, 64);
    // SAFETY: all memory is there.
    unsafe {
        let status = fgclip_model_grid(model, width, height, most, &mut grid, &mut error);
        if checked(status, &error) == 0 {
            let (rows, columns, bucket) = (u64::from(grid.rows), u64::from(grid.columns), u64::from(grid.bucket));
            let fits = (1..=bucket).contains(&(rows * columns));
            assert!(fits, "{width}×{height} pixels become {rows}×{columns} of {bucket} patches");
        }
        let status = fgclip_model_warm(model, numbers.below(40), &mut error);
        checked(status, &error);
    }
}
