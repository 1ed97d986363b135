//! The end of the process: no thread may be inside onnxruntime when its static objects are destroyed.
//!
//! `exit` destroys them while the other threads go on, and a run that is in progress then reads freed memory. So a
//! handler of ours acts before: it ends the runs in progress, waits for them, and lets none begin.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ort_sys::OrtRunOptions;

use crate::runtime;

/// The longest that an exit waits for calls that cannot be ended, such as one that opens a graph.
const PATIENCE: Duration = Duration::from_secs(10);
/// A service may open models again and again, and onnxruntime has made its static objects by then.
const MOST_HANDLERS: usize = 64;

/// Options of runs, which can end them.
type Options = Vec<NonNull<OrtRunOptions>>;

struct Calls {
    ending: bool,
    /// The calls in progress: a number of each, and the options of its runs.
    inside: Vec<(u64, Options)>,
    next: u64,
}

// SAFETY: the options are only passed to a function that several threads may call, while their call is in progress.
unsafe impl Send for Calls {}

static CALLS: Mutex<Calls> = Mutex::new(Calls { ending: false, inside: Vec::new(), next: 0 });
static LEFT: Condvar = Condvar::new();

/// A call into onnxruntime, for which an exit waits.
pub struct Inside(u64);

/// Begins a call into onnxruntime, whose runs have these options; None if the process is ending.
pub fn enter(options: Options) -> Option<Inside> {
    let mut calls = lock();
    if calls.ending {
        return None;
    }
    let number = calls.next;
    calls.next += 1;
    calls.inside.push((number, options));
    Some(Inside(number))
}

impl Drop for Inside {
    fn drop(&mut self) {
        lock().inside.retain(|(number, _)| *number != self.0);
        LEFT.notify_all();
    }
}

/// Whether the process is ending.
pub fn is_ending() -> bool {
    lock().ending
}

/// Has the handler called at an exit, before the handlers that are registered already.
///
/// To be called whenever onnxruntime may have made static objects, so that the handler comes before their destructors.
pub fn watch() {
    static HANDLERS: AtomicUsize = AtomicUsize::new(0);
    if HANDLERS.fetch_add(1, Ordering::Relaxed) < MOST_HANDLERS {
        // SAFETY: the handler takes nothing and is never unloaded. If memory is so short that it is not registered, an
        // exit is as it would be without it.
        let _ = unsafe { libc::atexit(end) };
    }
}

extern "C" fn end() {
    // A forked child has none of the threads, and may have inherited the lock as one of them held it.
    if runtime::forked() {
        return;
    }
    let mut calls = lock();
    calls.ending = true;
    if let Some(runtime) = runtime::opened() {
        for options in calls.inside.iter().flat_map(|(_, options)| options) {
            // SAFETY: they live as long as their call, which cannot leave while the lock is held.
            let _ = unsafe { runtime.check((runtime.api.RunOptionsSetTerminate)(options.as_ptr())) };
        }
    }
    let _ = LEFT.wait_timeout_while(calls, PATIENCE, |calls| !calls.inside.is_empty());
}

fn lock() -> MutexGuard<'static, Calls> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}
