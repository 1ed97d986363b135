//! The end of the process: no thread may be inside onnxruntime when its static objects are destroyed.
//!
//! `exit` destroys them while the other threads go on, and a run that is in progress then reads freed memory. So a
//! handler of ours acts before: it waits for the calls in progress, and lets none begin.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::runtime;

/// The longest that an exit waits. Calls with more than one run end after the first.
const PATIENCE: Duration = Duration::from_secs(10);
/// A service may open models again and again, and onnxruntime has made its static objects by then.
const MOST_HANDLERS: usize = 64;

static ENDING: AtomicBool = AtomicBool::new(false);
/// Number of calls in progress.
static INSIDE: AtomicUsize = AtomicUsize::new(0);

/// A call into onnxruntime, for which an exit waits.
pub struct Inside(());

/// Begins a call into onnxruntime; None if the process is ending.
pub fn enter() -> Option<Inside> {
    // Counted before the flag is read, so that the handler sees either the call, or the call the flag.
    INSIDE.fetch_add(1, Ordering::SeqCst);
    let inside = Inside(());
    (!is_ending()).then_some(inside)
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether the process is ending.
pub fn is_ending() -> bool {
    ENDING.load(Ordering::SeqCst)
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
    // A forked child has none of the threads that the count counts.
    if runtime::forked() {
        return;
    }
    ENDING.store(true, Ordering::SeqCst);
    let start = Instant::now();
    while INSIDE.load(Ordering::SeqCst) > 0 && start.elapsed() < PATIENCE {
        sleep(Duration::from_millis(1));
    }
}
