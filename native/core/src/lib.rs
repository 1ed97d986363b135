//! Reads a bundle of fgclip-rt and runs it through onnxruntime.
//!
//! This crate knows nothing of C: `fgclip-rt-capi` turns it into a C library. Its results are those of the Python
//! runtime. Patches and token ids are equal bit for bit; vectors are too, with the same libonnxruntime and batches.

pub mod boxes;
pub mod bundle;
mod decode;
pub mod device;
pub mod engines;
pub mod error;
pub mod exit;
pub mod grid;
pub mod interface;
pub mod machine;
pub mod manifest;
pub mod masks;
mod messages;
pub mod model;
mod onnx;
pub mod patches;
pub mod resize;
pub mod runtime;
pub mod scores;
pub mod session;
pub mod text;
pub mod tokenizer;
pub mod weights;
