//! Answers what the core computes, for the tests that hold it to the Python runtime.
//!
//! Each request on standard input is a line of JSON, and `bytes` bytes behind it. Each answer is a line of JSON too:
//! an `error` with its `status` and `index`, or a result, with `bytes` bytes behind it if it has any.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::time::Instant;

use fgclip_rt_core::boxes::{grid_boxes, BoxFormat, Shares};
use fgclip_rt_core::error::Result;
use fgclip_rt_core::grid::{bucket, target_grid, Grid};
use fgclip_rt_core::masks::{mask_weights, Masks};
use fgclip_rt_core::patches::{write_patches, Filter, PixelFormat, Pixels, Scratch};
use fgclip_rt_core::tokenizer::{lower, Tokenizer};
use serde_json::{json, Value};

/// A line of JSON, and the bytes behind it.
type Answer = (Value, Vec<u8>);

#[derive(Default)]
struct Oracle {
    scratch: Scratch,
    tokenizer: Option<Tokenizer>,
}

fn main() -> io::Result<()> {
    std::panic::set_hook(Box::new(|_| {}));
    let (mut input, mut output) = (BufReader::new(io::stdin().lock()), BufWriter::new(io::stdout().lock()));
    let mut oracle = Oracle::default();
    let mut line = String::new();
    while input.read_line(&mut line)? > 0 {
        let request: Value = serde_json::from_str(&line)?;
        let mut bytes = vec![0; request["bytes"].as_u64().unwrap_or(0) as usize];
        input.read_exact(&mut bytes)?;
        let (mut answer, bytes) = oracle.answer(&request, &bytes).unwrap_or_else(|error| {
            let status = error.status.name().to_str().expect("names are ASCII");
            (json!({"error": error.message, "status": status, "index": error.index}), Vec::new())
        });
        answer["bytes"] = bytes.len().into();
        writeln!(output, "{answer}")?;
        output.write_all(&bytes)?;
        output.flush()?;
        line.clear();
    }
    Ok(())
}

impl Oracle {
    fn answer(&mut self, request: &Value, bytes: &[u8]) -> Result<Answer> {
        let number = |name: &str| request[name].as_u64().unwrap_or_else(|| panic!("{name} is a number"));
        let small = |name: &str| number(name) as u32;
        let grid = || Grid { rows: small("rows"), columns: small("columns") };
        match request["do"].as_str().expect("a request says what to do") {
            "grids" => {
                let (buckets, sizes) = (numbers(&request["buckets"]), numbers(&request["sizes"]));
                let grids = sizes.as_chunks().0.iter().map(|[width, height]| {
                    let bucket = bucket(*width, *height, small("patch"), &buckets);
                    let Grid { rows, columns } = target_grid(*width, *height, small("patch"), bucket);
                    [bucket, rows, columns]
                });
                Ok((json!({"grids": grids.collect::<Vec<_>>()}), Vec::new()))
            }
            "patches" => {
                let format = match request["format"].as_str() {
                    Some("rgb") => PixelFormat::Rgb,
                    Some("bgr") => PixelFormat::Bgr,
                    Some("rgba") => PixelFormat::Rgba,
                    Some("bgra") => PixelFormat::Bgra,
                    Some("gray") => PixelFormat::Gray,
                    other => panic!("{other:?} is no format"),
                };
                let filter = match request["filter"].as_str() {
                    Some("bilinear") => Filter::Bilinear,
                    Some("bicubic") => Filter::Bicubic,
                    other => panic!("{other:?} is no filter"),
                };
                let pixels = Pixels::new(bytes, small("width"), small("height"), number("stride") as usize, format)?;
                let (grid, patch) = (grid(), small("patch"));
                let mut out = vec![0; (grid.rows * grid.columns * patch * patch * 3) as usize];
                let mut seconds = Vec::new();
                for _ in 0..request["repeat"].as_u64().unwrap_or(1) {
                    let start = Instant::now();
                    write_patches(&pixels, grid, patch, filter, &mut self.scratch, &mut out)?;
                    seconds.push(start.elapsed().as_secs_f64());
                }
                Ok((json!({"seconds": seconds}), out))
            }
            "boxes" => {
                let boxes: Vec<[f64; 4]> = floats(bytes).as_chunks().0.to_vec();
                let format = match request["format"].as_str() {
                    Some("xyxy") => BoxFormat::Xyxy,
                    Some("xywh") => BoxFormat::Xywh,
                    Some("normalized") => BoxFormat::Normalized,
                    other => panic!("{other:?} is no format"),
                };
                let shares = if request["shares"] == "float64" { Shares::Float64 } else { Shares::Float32 };
                let scaled = grid_boxes(&boxes, small("width"), small("height"), grid(), format, shares)?;
                Ok((json!({}), scaled.into_iter().flatten().flat_map(f32::to_le_bytes).collect()))
            }
            "masks" => {
                let numbers: Vec<f32>;
                let masks = if request["bool"] == true {
                    Masks::Bool(bytes)
                } else {
                    numbers = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                    Masks::Float32(&numbers)
                };
                let size = (small("mask_width"), small("mask_height"));
                let image = (small("width"), small("height"));
                let weights = mask_weights(masks, number("count") as usize, size, image, grid())?;
                Ok((json!({}), weights.into_iter().flat_map(f32::to_le_bytes).collect()))
            }
            "tokenizer" => {
                self.tokenizer = Some(Tokenizer::from_json(bytes, "tokenizer.json", number("shortest") as usize)?);
                Ok((json!({}), Vec::new()))
            }
            "encode" => {
                let text = std::str::from_utf8(bytes).expect("texts are UTF-8");
                let tokenizer = self.tokenizer.as_ref().expect("a tokenizer was read");
                let length = number("length") as usize;
                let (mut ids, mut mask) = (vec![-1; length], vec![-1; length]);
                let lowercase = request["lowercase"] == true;
                let pad = request["pad"].as_i64().expect("pad is a number") as i32;
                let encoded = tokenizer.encode(text, lowercase, length, pad, &mut ids, Some(&mut mask))?;
                Ok((json!({"ids": ids, "mask": mask, "truncated": encoded.truncated}), Vec::new()))
            }
            "lower" => Ok((json!({}), lower(std::str::from_utf8(bytes).expect("texts are UTF-8")).into_bytes())),
            other => panic!("{other} is no request"),
        }
    }
}

fn numbers(values: &Value) -> Vec<u32> {
    let values = values.as_array().expect("a list");
    values.iter().map(|value| value.as_u64().and_then(|number| number.try_into().ok()).expect("a number")).collect()
}

fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
}
