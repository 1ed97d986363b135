//! Boxes from a caller's units to units of the grid of patches, in which they are sampled; checked on the way.

use crate::error::{Error, Result, Status};
use crate::grid::Grid;
use crate::messages::{grouped, joined};

/// Type that a model rounds shares of the image to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shares {
    /// Shares stay doubles.
    Float64,
    /// Shares are rounded to single precision.
    Float32,
}

/// Meaning of a box's four numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxFormat {
    /// Two corners in pixels.
    Xyxy,
    /// The upper left corner, width and height in pixels.
    Xywh,
    /// Two corners in shares of the image, 0 to 1.
    Normalized,
}

/// Samples are counted in single precision, which is exact up to here and far beyond any image.
const FARTHEST: f64 = 1_000_000.0;
/// Least and largest share of an image: a box may reach over the border by the image's own size.
const LEAST_SHARE: f64 = -1.0;
const LARGEST_SHARE: f64 = 2.0;
/// Pixels that are taken for shares: 0 to 1, or somewhat over the border.
const LIKE_SHARES: std::ops::RangeInclusive<f64> = -0.5..=1.5;
/// Only in an image of fewer pixels may such boxes be meant as pixels.
const FEW_PIXELS: u64 = 64;

impl BoxFormat {
    fn meaning(self) -> &'static str {
        match self {
            BoxFormat::Xyxy => "x1,y1,x2,y2 in pixels",
            BoxFormat::Xywh => "x,y,width,height in pixels",
            BoxFormat::Normalized => "x1,y1,x2,y2 in shares of the image, 0 to 1",
        }
    }
}

/// Boxes in units of the grid of patches, x1, y1, x2, y2, as the released code computes them.
///
/// The number of samples in a box is the ceiling of its extent, so it depends on every rounding: x / width · columns is
/// computed in doubles and rounded once. Models that take shares of the image round x / width to `shares` first.
/// A box may reach over the image's border, but must have some of the image inside. Fails for a box that is not four
/// finite numbers, is empty or reversed, lies outside the image, or is in other units.
pub fn grid_boxes(
    boxes: &[[f64; 4]],
    width: u32,
    height: u32,
    grid: Grid,
    format: BoxFormat,
    shares: Shares,
) -> Result<Vec<[f32; 4]>> {
    let mut scaled = Vec::new();
    scaled.try_reserve_exact(boxes.len()).map_err(|_| {
        Error::new(Status::OutOfMemory, format!("{} boxes do not fit the memory; pass fewer.", boxes.len()))
    })?;
    for (index, numbers) in boxes.iter().enumerate() {
        corners(index, numbers, width, height, format)?;
    }
    if format != BoxFormat::Normalized {
        check_units(boxes, width, height)?;
    }
    for (index, numbers) in boxes.iter().enumerate() {
        let corners = corners(index, numbers, width, height, format)?;
        let sides = if format == BoxFormat::Normalized { [1.0; 2] } else { [f64::from(width), f64::from(height)] };
        let units = grid_units(corners, sides, grid, shares);
        // RoIAlign begins half a patch before each edge, where small numbers may round to the same one.
        let edges = units.map(|value| value - 0.5);
        if edges[0] >= edges[2] || edges[1] >= edges[3] {
            let fault = "is empty in float32, in which boxes are sampled; make it larger.";
            return Err(refused(Status::BoxEmpty, index, numbers, fault));
        }
        scaled.push(units);
    }
    Ok(scaled)
}

/// Corners in units of the grid, of corners that `sides`, a width and a height, are the whole of.
fn grid_units(corners: [f64; 4], sides: [f64; 2], grid: Grid, shares: Shares) -> [f32; 4] {
    let cells = [f64::from(grid.columns), f64::from(grid.rows)];
    std::array::from_fn(|at| {
        let share = corners[at] / sides[at % 2];
        let share = match shares {
            Shares::Float64 => share,
            Shares::Float32 => f64::from(share as f32),
        };
        (share * cells[at % 2]) as f32
    })
}

/// x1, y1, x2, y2 of a box, in pixels or in shares of the image, once it has passed the checks.
fn corners(index: usize, numbers: &[f64; 4], width: u32, height: u32, format: BoxFormat) -> Result<[f64; 4]> {
    let refuse = |status, fault: String| Err(refused(status, index, numbers, &fault));
    let meaning = format.meaning();
    if !numbers.iter().all(|number| number.is_finite()) {
        return refuse(Status::BoxInvalid, format!("has a coordinate that is not a finite number; give {meaning}."));
    }
    let (width, height, unit) = if format == BoxFormat::Normalized {
        if !numbers.iter().all(|number| (LEAST_SHARE..=LARGEST_SHARE).contains(number)) {
            return refuse(
                Status::BoxUnits,
                format!("is far over its image, as pixels are; give {meaning}, or boxes in pixels."),
            );
        }
        (1.0, 1.0, "whose shares are 0 to 1".to_string())
    } else {
        if numbers.iter().any(|number| number.abs() > FARTHEST) {
            let farthest = grouped(FARTHEST as u64);
            return refuse(Status::BoxInvalid, format!("reaches over {farthest} pixels; give {meaning} of the image."));
        }
        (f64::from(width), f64::from(height), format!("of {width}×{height} pixels"))
    };
    let [x1, y1, mut x2, mut y2] = *numbers;
    if format == BoxFormat::Xywh {
        (x2, y2) = (x1 + x2, y1 + y2);
    }
    if x1 > x2 || y1 > y2 {
        let other = if format == BoxFormat::Xyxy { ", or boxes with a width and a height" } else { "" };
        return refuse(
            Status::BoxReversed,
            format!("is reversed; give the upper left corner first, {meaning}{other}."),
        );
    }
    if x1 == x2 || y1 == y2 {
        return refuse(Status::BoxEmpty, "is empty; give it a width and a height.".to_string());
    }
    if x2 <= 0.0 || y2 <= 0.0 || x1 >= width || y1 >= height {
        return refuse(Status::BoxOutside, format!("lies outside its image, {unit}; give {meaning}."));
    }
    Ok([x1, y1, x2, y2])
}

/// Refuses pixels that are certainly shares of the image.
///
/// Only all boxes of a call together tell: one of them may well be small and lie in the corner.
fn check_units(boxes: &[[f64; 4]], width: u32, height: u32) -> Result<()> {
    let like_shares = boxes.iter().flatten().all(|number| LIKE_SHARES.contains(number));
    match boxes.first() {
        Some(first) if like_shares && u64::from(width) * u64::from(height) >= FEW_PIXELS => {
            let fault = format!(
                "like every box of the call, lies in the first pixel of an image of {width}×{height}, as shares of the \
                 image do; give pixels, or say that they are normalized."
            );
            let message = format!("{}, {fault}", name(0, first));
            Err(Error::new(Status::BoxUnits, message).at(0))
        }
        _ => Ok(()),
    }
}

fn refused(status: Status, index: usize, numbers: &[f64; 4], fault: &str) -> Error {
    Error::new(status, format!("{} {fault}", name(index, numbers))).at(index)
}

fn name(index: usize, numbers: &[f64; 4]) -> String {
    format!("box {index} ({})", joined(numbers.map(general)).replace(", ", ","))
}

/// A number with six significant digits, as C's `%g` writes it.
fn general(number: f64) -> String {
    if !number.is_finite() {
        return format!("{number}").to_lowercase();
    }
    let scientific = format!("{number:.5e}");
    let (digits, exponent) = scientific.split_once('e').expect("a number in this form has an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is a whole number");
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", without_zeros(digits), exponent.abs());
    }
    without_zeros(&format!("{number:.*}", (5 - exponent) as usize)).to_string()
}

fn without_zeros(digits: &str) -> &str {
    if digits.contains('.') {
        digits.trim_end_matches('0').trim_end_matches('.')
    } else {
        digits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { rows: 12, columns: 16 };

    fn boxes(numbers: [f64; 4], format: BoxFormat, shares: Shares) -> Result<Vec<[f32; 4]>> {
        grid_boxes(&[numbers], 640, 480, GRID, format, shares)
    }

    #[test]
    fn boxes_are_rounded_once() {
        let numbers = [9.7, 100.1, 333.3, 470.9];
        let expected = [9.7 / 640.0 * 16.0, 100.1 / 480.0 * 12.0, 333.3 / 640.0 * 16.0, 470.9 / 480.0 * 12.0];
        let scaled = boxes(numbers, BoxFormat::Xyxy, Shares::Float64).unwrap();
        assert_eq!(scaled, [expected.map(|value: f64| value as f32)]);
    }

    #[test]
    fn the_formats_agree() {
        let pixels = boxes([64.0, 48.0, 320.0, 240.0], BoxFormat::Xyxy, Shares::Float64).unwrap();
        assert_eq!(boxes([64.0, 48.0, 256.0, 192.0], BoxFormat::Xywh, Shares::Float64).unwrap(), pixels);
        assert_eq!(boxes([0.1, 0.1, 0.5, 0.5], BoxFormat::Normalized, Shares::Float64).unwrap(), pixels);
    }

    #[test]
    fn each_fault_has_its_status() {
        use BoxFormat::{Normalized, Xywh, Xyxy};
        let faults = [
            ([f64::NAN, 0.0, 9.0, 9.0], Xyxy, Status::BoxInvalid),
            ([0.0, 0.0, f64::INFINITY, 9.0], Normalized, Status::BoxInvalid),
            ([0.0, 0.0, 2e6, 9.0], Xyxy, Status::BoxInvalid),
            ([0.0, 0.0, 300.0, 9.0], Normalized, Status::BoxUnits),
            ([0.0, 0.0, 1.0, 1.0], Xyxy, Status::BoxUnits),
            ([9.0, 0.0, 2.0, 9.0], Xyxy, Status::BoxReversed),
            ([9.0, 0.0, -2.0, 9.0], Xywh, Status::BoxReversed),
            ([9.0, 0.0, 9.0, 9.0], Xyxy, Status::BoxEmpty),
            ([9.0, 0.0, 9.0 + 1e-9, 9.0], Xyxy, Status::BoxEmpty),
            ([700.0, 0.0, 800.0, 9.0], Xyxy, Status::BoxOutside),
            ([-9.0, 0.0, 0.0, 9.0], Xyxy, Status::BoxOutside),
        ];
        for (numbers, format, status) in faults {
            let error = boxes(numbers, format, Shares::Float64).unwrap_err();
            assert_eq!((error.status, error.index), (status, Some(0)), "{numbers:?} {error}");
        }
    }

    #[test]
    fn an_error_names_its_box() {
        let error =
            grid_boxes(&[[0.0, 0.0, 9.0, 9.0], [5.5, 1.0, 1.0, 2.0]], 64, 64, GRID, BoxFormat::Xyxy, Shares::Float64)
                .unwrap_err();
        assert_eq!(error.index, Some(1));
        assert!(error.message.starts_with("box 1 (5.5,1,1,2) is reversed; "), "{error}");
    }

    #[test]
    fn numbers_are_written_as_by_c() {
        let written = [
            (0.0, "0"),
            (-0.0, "-0"),
            (100.0, "100"),
            (123456.0, "123456"),
            (1234567.0, "1.23457e+06"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.0 / 3.0, "0.333333"),
            (999999.5, "1e+06"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (number, expected) in written {
            assert_eq!(general(number), expected);
        }
    }
}
