//! The structs of the header, and how they are read from and written to the caller's memory.

#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_void, CStr};
use std::mem::{offset_of, MaybeUninit};

use fgclip_rt_core::error::{Error, Result, Status};

/// `fgclip_error`.
#[repr(C)]
pub struct fgclip_error {
    pub struct_size: u32,
    pub status: i32,
    pub index: i64,
    pub needed: u64,
    pub message: [c_char; 512],
}

/// `fgclip_options`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fgclip_options {
    pub struct_size: u32,
    pub threads: u32,
    pub device: i32,
    pub device_number: u32,
    pub memory: i32,
    pub spinning: i32,
    pub check: i32,
    pub weights: i32,
    pub max_text_bytes: u64,
    pub precision: *const c_char,
    pub onnxruntime: *const c_char,
}

/// `fgclip_image`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fgclip_image {
    pub data: *const u8,
    pub stride: usize,
    pub width: u32,
    pub height: u32,
    pub format: i32,
    pub reserved: u32,
}

/// `fgclip_grid`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fgclip_grid {
    pub rows: u32,
    pub columns: u32,
    pub bucket: u32,
    pub reserved: u32,
    pub bytes: u64,
}

/// `fgclip_image_request`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fgclip_image_request {
    pub struct_size: u32,
    pub max_num_patches: u32,
    pub batch_size: u32,
    pub features: u32,
}

/// `fgclip_text_request`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fgclip_text_request {
    pub struct_size: u32,
    pub features: u32,
    pub walk_type: *const c_char,
    pub lengths: *const usize,
    pub truncated: *mut u8,
}

/// `fgclip_region_request`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fgclip_region_request {
    pub struct_size: u32,
    pub max_num_patches: u32,
    pub features: u32,
    pub box_format: i32,
    pub dense: *const f32,
    pub dense_count: usize,
}

/// `fgclip_mask_request`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fgclip_mask_request {
    pub struct_size: u32,
    pub max_num_patches: u32,
    pub features: u32,
    pub mask_type: i32,
    pub mask_width: u32,
    pub mask_height: u32,
    pub dense: *const f32,
    pub dense_count: usize,
}

/// `fgclip_log_function`.
pub type fgclip_log_function = Option<unsafe extern "C" fn(user: *mut c_void, severity: i32, message: *const c_char)>;

/// A struct that begins with its size, and of which zeros are the defaults.
///
/// # Safety
/// It must be `repr(C)`, valid as zeros, and have `struct_size: u32` first.
pub unsafe trait Sized32: Copy {
    /// Its name in the header.
    const NAME: &'static str;
}

macro_rules! sized {
    ($($name:ident)*) => {$(
        // SAFETY: they are declared above so: numbers and pointers only.
        unsafe impl Sized32 for $name {
            const NAME: &'static str = stringify!($name);
        }
    )*};
}

sized! { fgclip_options fgclip_image_request fgclip_text_request fgclip_region_request fgclip_mask_request }

/// Reads a struct of the caller, of this version or another. NULL gives the defaults.
///
/// A shorter one comes from a caller of an earlier version, and its missing fields are defaults. A longer one comes from
/// a caller of a later version, who must not have set what this version does not know.
///
/// # Safety
/// `given` must be NULL or point to as many readable bytes as its `struct_size` says.
pub unsafe fn read<T: Sized32>(given: *const T) -> Result<T> {
    let ours = size_of::<T>();
    let mut value = MaybeUninit::<T>::zeroed();
    if !given.is_null() {
        // SAFETY: the size comes first in every version; the bytes are the caller's, as many as it says.
        unsafe {
            let size = given.cast::<u32>().read_unaligned() as usize;
            if size < size_of::<u32>() || size > 1 << 16 {
                let init = T::NAME.to_uppercase();
                return Err(invalid(format!("{}.struct_size is {size}; begin it with {init}_INIT.", T::NAME)));
            }
            let bytes = std::slice::from_raw_parts(given.cast::<u8>(), size);
            if bytes.iter().skip(ours).any(|byte| *byte != 0) {
                let message = format!(
                    "{} sets an option that this version does not know; install a later fgclip_rt, or leave it 0.",
                    T::NAME
                );
                return Err(invalid(message));
            }
            let known = size.min(ours);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), known);
        }
    }
    // SAFETY: zeros are valid, and so is what the caller has written over them.
    Ok(unsafe { value.assume_init() })
}

/// Writes an outcome into the caller's struct, as far as its size allows; NULL is nothing to write to.
///
/// # Safety
/// `target` must be NULL or point to as many writable bytes as its `struct_size` says.
pub unsafe fn report(target: *mut fgclip_error, outcome: &Result<()>) {
    // SAFETY: as the caller promises. A struct of another size is left alone.
    unsafe {
        if target.is_null() || ((*target).struct_size as usize) < size_of::<fgclip_error>() {
            return;
        }
        let target = &mut *target;
        let (status, index, needed, message) = outcome.as_ref().map_or_else(told, |()| (0, -1, 0, ""));
        (target.status, target.index, target.needed) = (status, index, needed);
        let mut end = message.len().min(target.message.len() - 1);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        for (cell, byte) in target.message.iter_mut().zip(message.as_bytes()[..end].iter().chain(&[0])) {
            *cell = *byte as c_char;
        }
    }
}

/// Parts of an error. Not inlined, since they would be read, and dropped, after a success too: memcheck would complain.
#[cold]
#[inline(never)]
fn told(error: &Error) -> (i32, i64, u64, &str) {
    (error.status as i32, error.index.unwrap_or(-1), error.needed.unwrap_or(0), &error.message)
}

/// The error of an argument.
pub fn invalid(message: impl Into<String>) -> Error {
    Error::new(Status::ArgumentInvalid, message)
}

/// What a pointer points to; refuses NULL.
///
/// # Safety
/// `pointer` must be NULL or valid for reads.
pub unsafe fn given<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    // SAFETY: as the caller promises.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// What a result is written to; refuses NULL.
///
/// # Safety
/// `pointer` must be NULL or valid for writes.
pub unsafe fn writable<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut MaybeUninit<T>> {
    // SAFETY: as the caller promises.
    unsafe { pointer.cast::<MaybeUninit<T>>().as_mut() }.ok_or_else(|| null(name))
}

/// `count` items; NULL is allowed for none.
///
/// # Safety
/// `pointer` must be NULL or valid for reads of `count` items.
pub unsafe fn list<'a, T>(pointer: *const T, count: usize, name: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(null(name));
    }
    check_size::<T>(count, name)?;
    // SAFETY: as the caller promises, and the size is one that memory can have.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// The caller's memory for `capacity` numbers; NULL is allowed for none.
///
/// # Safety
/// `pointer` must be NULL or valid for writes of `capacity` items.
pub unsafe fn memory<'a, T>(pointer: *mut T, capacity: usize, name: &str) -> Result<&'a mut [T]> {
    if capacity == 0 {
        return Ok(&mut []);
    }
    if pointer.is_null() {
        return Err(null(name));
    }
    check_size::<T>(capacity, name)?;
    // SAFETY: as the caller promises, and the size is one that memory can have.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, capacity) })
}

/// A text that ends in NUL; None for NULL.
///
/// # Safety
/// `pointer` must be NULL or point to a text that ends in NUL.
pub unsafe fn word<'a>(pointer: *const c_char, name: &str) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(pointer) }.to_str();
    text.map(Some).map_err(|_| invalid(format!("{name} is not UTF-8; pass UTF-8.")))
}

fn check_size<T>(count: usize, name: &str) -> Result<()> {
    match count.checked_mul(size_of::<T>()) {
        Some(size) if size <= isize::MAX as usize => Ok(()),
        _ => Err(invalid(format!("{name} has {count} items, more than any memory holds; pass their number."))),
    }
}

fn null(name: &str) -> Error {
    invalid(format!("{name} is NULL; pass a pointer."))
}

// The header promises this layout where pointers have 64 bits.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<fgclip_error>() == 536 && offset_of!(fgclip_error, message) == 24);
    assert!(size_of::<fgclip_options>() == 56 && offset_of!(fgclip_options, precision) == 40);
    assert!(size_of::<fgclip_image>() == 32 && offset_of!(fgclip_image, format) == 24);
    assert!(size_of::<fgclip_grid>() == 24 && offset_of!(fgclip_grid, bytes) == 16);
    assert!(size_of::<fgclip_image_request>() == 16);
    assert!(size_of::<fgclip_text_request>() == 32);
    assert!(size_of::<fgclip_region_request>() == 32);
    assert!(size_of::<fgclip_mask_request>() == 40);
};
