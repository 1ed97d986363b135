//! What surrounds every function of the header.

use std::panic::{catch_unwind, set_hook, AssertUnwindSafe};
use std::sync::Once;

use fgclip_rt_core::error::{Error, Result, Status};
use fgclip_rt_core::runtime;

use crate::types::{fgclip_error, report};

/// Declares functions of the header that take arguments, and an `error` behind them, and return a status.
///
/// Each refuses a forked process, catches panics, and reports its outcome.
macro_rules! export {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        ///
        /// # Safety
        /// As the header says.
        #[unsafe(no_mangle)]
        #[allow(clippy::too_many_arguments)]
        pub unsafe extern "C" fn $name($($argument: $kind,)* error: *mut $crate::types::fgclip_error) -> i32 {
            // SAFETY: as the header's reader promises.
            unsafe { $crate::guard::guard(error, || $body) }
        }
    )*};
}
pub(crate) use export;

/// Runs the body of a function, and gives its status.
///
/// # Safety
/// `error` must be as the header says.
pub unsafe fn guard(error: *mut fgclip_error, body: impl FnOnce() -> Result<()>) -> i32 {
    let outcome = if runtime::forked() { Err(forked()) } else { caught(body) };
    // SAFETY: as the caller promises.
    unsafe { report(error, &outcome) };
    outcome.map_or_else(|error| error.status as i32, |()| 0)
}

/// Runs what may panic, and turns a panic into an error.
pub fn caught(body: impl FnOnce() -> Result<()>) -> Result<()> {
    static SILENCE: Once = Once::new();
    // A panic of ours is reported to the caller, and printed nowhere. The hook is that of this library's own runtime.
    SILENCE.call_once(|| set_hook(Box::new(|_| {})));
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let message = format!("fgclip_rt has a fault ({}); report it.", text.unwrap_or("no message"));
        Err(Error::new(Status::Internal, message))
    })
}

fn forked() -> Error {
    let message =
        "this process was forked after a model was opened, and onnxruntime's threads did not come along; open \
                   models after the fork.";
    Error::new(Status::Forked, message)
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::mem::zeroed;

    use super::*;

    export! {
        fn fgclip_test_panics(formatted: bool) {
            if formatted {
                panic!("a fault of number {}", 7);
            }
            panic!("a fault");
        }
    }

    #[test]
    fn a_panic_is_reported_and_does_not_cross() {
        for (formatted, fault) in [(false, "a fault"), (true, "a fault of number 7")] {
            // SAFETY: zeros are valid, and the pointer is.
            let (status, error) = unsafe {
                let mut error: fgclip_error = zeroed();
                error.struct_size = size_of::<fgclip_error>() as u32;
                (fgclip_test_panics(formatted, &mut error), error)
            };
            // SAFETY: messages end in NUL.
            let message = unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_str().unwrap();
            assert_eq!((status, error.status), (Status::Internal as i32, Status::Internal as i32));
            assert_eq!(message, format!("fgclip_rt has a fault ({fault}); report it."));
        }
    }
}
