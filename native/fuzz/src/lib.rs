//! Targets of fuzzing: each is given arbitrary bytes, and panics if a promise does not hold.
//!
//! `short` replays the seeds of `corpus/` and changes them at random; it is part of the tests. `long` has libFuzzer
//! choose the bytes by the code that they reach.

mod calls;
mod readers;
mod resize;

use std::any::Any;
use std::panic::{catch_unwind, set_hook};
use std::path::PathBuf;
use std::sync::Once;

use fgclip_rt_core::error::Error;

/// A target by its name.
pub type Target = fn(&[u8]);

/// Every target, with the name of its folder of seeds.
pub const TARGETS: [(&str, Target); 5] = [
    ("manifest", readers::manifest),
    ("tokenizer", readers::tokenizer),
    ("text", readers::text),
    ("resize", resize::resize),
    ("calls", calls::calls),
];

/// Runs a target on some bytes; its panic becomes the error.
pub fn attempt(target: Target, data: &[u8]) -> Result<(), String> {
    static SILENCE: Once = Once::new();
    // The tokenizer's panics are caught, and must not fill the terminal or end the process.
    SILENCE.call_once(|| set_hook(Box::new(|_| {})));
    catch_unwind(|| target(data)).map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

/// A file of the repository.
fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Makes sure that an error is a sentence with a fault and a remedy that can be printed.
fn check_sentence(error: &Error) {
    let message = &error.message;
    assert!(message.ends_with('.') && message.contains("; "), "no fault and remedy: {message:?}");
    assert!(!message.chars().any(char::is_control), "it cannot be printed: {message:?}");
}

/// Numbers out of arbitrary bytes; zeros when they are used up.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// A number below `end`.
    fn below(&mut self, end: u32) -> u32 {
        u32::from(u16::from_le_bytes([self.byte(), self.byte()])) % end
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `size` bytes that continue the given ones without a pattern.
    fn noise(&mut self, size: usize) -> Vec<u8> {
        let mut state = self.below(1 << 16) | 1 << 16;
        (0..size)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                // Extremes show more than the middle.
                match state >> 30 {
                    0 => 0,
                    1 => 255,
                    _ => (state >> 8) as u8,
                }
            })
            .collect()
    }
}
