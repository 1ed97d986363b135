//! The resize against a plain one, which follows `docs/bundle/preparation.md` pixel by pixel.

use fgclip_rt_core::grid::Grid;
use fgclip_rt_core::patches::{write_patches, Filter, PixelFormat, Pixels, Scratch};

use crate::Numbers;

type Kernel = fn(f64) -> f64;

/// Patches of an image of any size, format and stride are those of the plain resize.
pub fn resize(data: &[u8]) {
    let mut numbers = Numbers(data);
    let (format, order) = match numbers.below(5) {
        0 => (PixelFormat::Rgb, [0, 1, 2]),
        1 => (PixelFormat::Bgr, [2, 1, 0]),
        2 => (PixelFormat::Rgba, [0, 1, 2]),
        3 => (PixelFormat::Bgra, [2, 1, 0]),
        _ => (PixelFormat::Gray, [0, 0, 0]),
    };
    let bicubic = numbers.below(2) == 1;
    let long = if numbers.below(8) == 0 { 3000 } else { 70 };
    let (width, height) = (1 + numbers.below(long), 1 + numbers.below(if long > 70 { 9 } else { 70 }));
    let grid = Grid { rows: 1 + numbers.below(5), columns: 1 + numbers.below(5) };
    let patch = 1 + numbers.below(17);
    let step = format.channels();
    let stride = width as usize * step + numbers.below(40) as usize;
    // The last row ends with its last pixel, so that AddressSanitizer sees who reads on.
    let bytes = numbers.noise(stride * (height as usize - 1) + width as usize * step);
    let pixels = Pixels::new(&bytes, width, height, stride, format).expect("the sizes fit");
    let (target_width, target_height) = ((grid.columns * patch) as usize, (grid.rows * patch) as usize);
    let mut found = vec![7; target_width * target_height * 3];
    let filter = if bicubic { Filter::Bicubic } else { Filter::Bilinear };
    write_patches(&pixels, grid, patch, filter, &mut Scratch::default(), &mut found).expect("it is small");

    let (reach, kernel): (f64, Kernel) = if bicubic { (2.0, cubic) } else { (1.0, triangle) };
    let colour = |x: usize, y: usize, colour: usize| bytes[y * stride + x * step + order[colour]];
    let across = pass(width as usize, height as usize, target_width, (reach, kernel), colour);
    let narrow = |x: usize, y: usize, colour: usize| across[(y * target_width + x) * 3 + colour];
    // The second pass is the first on its side.
    let upright = |y: usize, x: usize, colour: usize| narrow(x, y, colour);
    let down = pass(height as usize, target_width, target_height, (reach, kernel), upright);
    let side = patch as usize;
    for (at, byte) in found.into_iter().enumerate() {
        let (place, pixel) = (at / (side * side * 3), at / 3 % (side * side));
        let (row, column) = (place / grid.columns as usize, place % grid.columns as usize);
        let (y, x) = (row * side + pixel / side, column * side + pixel % side);
        assert_eq!(byte, down[(x * target_height + y) * 3 + at % 3], "at row {y}, column {x} of {width}×{height}");
    }
}

/// Resizes the first axis of an image from `before` pixels to `after`, on each of `lines` lines.
fn pass(
    before: usize,
    lines: usize,
    after: usize,
    (reach, kernel): (f64, Kernel),
    colour: impl Fn(usize, usize, usize) -> u8,
) -> Vec<u8> {
    let scale = before as f64 / after as f64;
    let stretch = scale.max(1.0);
    let mut result = vec![0; lines * after * 3];
    for index in 0..after {
        let centre = (index as f64 + 0.5) * scale;
        let first = (centre - reach * stretch + 0.5).max(0.0) as usize;
        let end = ((centre + reach * stretch + 0.5) as usize).min(before);
        let values: Vec<f64> = (first..end).map(|at| kernel((at as f64 - centre + 0.5) * (1.0 / stretch))).collect();
        let mut total = 0.0;
        for value in &values {
            total += value;
        }
        let fixed = |value: &f64| (value / total * 4_194_304.0 + if *value < 0.0 { -0.5 } else { 0.5 }) as i64;
        let weights: Vec<i64> = values.iter().map(fixed).collect();
        for line in 0..lines {
            for channel in 0..3 {
                let pixels = (first..end).map(|at| i64::from(colour(at, line, channel)));
                let sum: i64 = weights.iter().zip(pixels).map(|(weight, pixel)| weight * pixel).sum();
                result[(line * after + index) * 3 + channel] = ((sum + 2_097_152) >> 22).clamp(0, 255) as u8;
            }
        }
    }
    result
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Keys' kernel with a = -1/2.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    } else {
        0.0
    }
}
