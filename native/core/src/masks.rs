//! Masks over an image to weights of its patches.

use std::ops::Range;

use crate::error::{Error, Result, Status};
use crate::grid::Grid;

/// Masks side by side, row by row.
#[derive(Clone, Copy)]
pub enum Masks<'a> {
    /// Numbers from 0 to 1.
    Float32(&'a [f32]),
    /// A byte for each pixel: zero is outside, any other inside.
    Bool(&'a [u8]),
}

impl Masks<'_> {
    fn len(&self) -> usize {
        match self {
            Masks::Float32(values) => values.len(),
            Masks::Bool(values) => values.len(),
        }
    }

    fn value(&self, at: usize) -> f32 {
        match self {
            Masks::Float32(values) => values[at],
            Masks::Bool(values) => f32::from(values[at] != 0),
        }
    }
}

/// The weight of each patch in each of `count` masks, [count, rows·columns].
///
/// A mask of the image's size gives each patch the mean of its pixels: of a mask of zeros and ones, the share of the
/// patch that it covers. A mask of the grid's size is taken as it is. Sizes are width and height. Fails for a mask that
/// is of another size, holds other numbers than 0 to 1, or is zero everywhere.
///
/// # Panics
///
/// Panics unless `masks` holds `count` masks of `mask_size`.
pub fn mask_weights(
    masks: Masks,
    count: usize,
    mask_size: (u32, u32),
    image_size: (u32, u32),
    grid: Grid,
) -> Result<Vec<f32>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let (width, height) = mask_size;
    let of_grid = mask_size == (grid.columns, grid.rows);
    if !of_grid && mask_size != image_size {
        let message = format!(
            "masks have the shape [{count}, {height}, {width}]; give [m, {}, {}], the image's size, or [m, {}, {}], its \
             grid of patches.",
            image_size.1, image_size.0, grid.rows, grid.columns
        );
        return Err(Error::new(Status::MaskMisshaped, message));
    }
    let pixels = width as usize * height as usize;
    assert_eq!(Some(masks.len()), pixels.checked_mul(count), "the memory holds the masks");
    for index in 0..count {
        let values = (index * pixels..(index + 1) * pixels).map(|at| masks.value(at));
        if !values.clone().all(|value| (0.0..=1.0).contains(&value)) {
            let message = format!("mask {index} holds numbers that are not from 0 to 1; scale it.");
            return Err(Error::new(Status::MaskInvalid, message).at(index));
        }
        if values.into_iter().all(|value| value == 0.0) {
            let message = format!("mask {index} is zero everywhere; leave it out.");
            return Err(Error::new(Status::MaskEmpty, message).at(index));
        }
    }
    let cells = grid.rows as usize * grid.columns as usize;
    let total = cells.checked_mul(count).ok_or_else(|| too_many(count))?;
    let mut weights = Vec::new();
    weights.try_reserve_exact(total).map_err(|_| too_many(count))?;
    if of_grid {
        weights.extend((0..total).map(|at| masks.value(at)));
        return Ok(weights);
    }
    let (rows, columns) = (Means::new(height, grid.rows), Means::new(width, grid.columns));
    let (Some(rows), Some(columns)) = (rows, columns) else { return Err(too_many(count)) };
    let mut means = vec![0.0; cells];
    for index in 0..count {
        means.fill(0.0);
        for y in 0..height as usize {
            let start = index * pixels + y * width as usize;
            for column in 0..grid.columns as usize {
                let sum: f64 = columns.of(column).map(|(x, share)| share * f64::from(masks.value(start + x))).sum();
                for (row, share) in rows.at(y) {
                    means[row * grid.columns as usize + column] += share * sum;
                }
            }
        }
        weights.extend(means.iter().map(|mean| *mean as f32));
    }
    Ok(weights)
}

fn too_many(count: usize) -> Error {
    Error::new(Status::OutOfMemory, format!("{count} masks do not fit the memory; pass fewer."))
}

/// The mean of each of some equal parts of an axis.
struct Means {
    /// For each part, the pixels that it has a share of, and where their shares begin.
    parts: Vec<(Range<usize>, usize)>,
    /// Shares in single precision, as the Python runtime rounds them.
    shares: Vec<f64>,
    /// For each pixel, the parts that have a share of it.
    pixels: Vec<Range<usize>>,
}

impl Means {
    /// None if the memory for a very long axis is not there.
    fn new(size: u32, cells: u32) -> Option<Means> {
        let (length, parts) = (f64::from(size), f64::from(cells));
        let (mut pixels, mut shares) = (Vec::new(), Vec::new());
        pixels.try_reserve_exact(size as usize).ok()?;
        // A pixel at the border of two parts has a share in both.
        shares.try_reserve_exact(size as usize + 2 * cells as usize).ok()?;
        pixels.resize(size as usize, 0..0);
        let mut means = Means { parts: Vec::new(), shares, pixels };
        for cell in 0..cells {
            let (low, high) = (f64::from(cell) * (length / parts), f64::from(cell + 1) * (length / parts));
            let (first, last) = (low.floor() as usize, (high.ceil() as usize).min(size as usize));
            means.parts.push((first..last, means.shares.len()));
            for pixel in first..last {
                let overlap = high.min(pixel as f64 + 1.0) - low.max(pixel as f64);
                means.shares.push(f64::from((overlap.max(0.0) * (parts / length)) as f32));
                let cells_of = &mut means.pixels[pixel];
                if cells_of.end == 0 {
                    cells_of.start = cell as usize;
                }
                cells_of.end = cell as usize + 1;
            }
        }
        Some(means)
    }

    /// Pixels and shares of a part.
    fn of(&self, part: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
        let (pixels, start) = &self.parts[part];
        pixels.clone().zip(self.shares[*start..].iter().copied())
    }

    /// Parts that a pixel belongs to, and its share in each.
    fn at(&self, pixel: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
        self.pixels[pixel].clone().map(move |part| {
            let (pixels, start) = &self.parts[part];
            (part, self.shares[start + pixel - pixels.start])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { rows: 2, columns: 3 };

    #[test]
    fn a_mask_gives_each_patch_its_mean() {
        let mask = [1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        let weights = mask_weights(Masks::Bool(&mask), 1, (6, 4), (6, 4), GRID).unwrap();
        assert_eq!(weights, [0.75, 0.0, 0.25, 0.0, 0.0, 0.5]);
    }

    #[test]
    fn patches_smaller_than_a_pixel_share_it() {
        let weights = mask_weights(Masks::Float32(&[0.5, 1.0]), 1, (2, 1), (2, 1), GRID).unwrap();
        assert_eq!(weights, [0.5, 0.75, 1.0, 0.5, 0.75, 1.0]);
    }

    #[test]
    fn a_mask_of_the_grid_is_taken_as_it_is() {
        let mask = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(mask_weights(Masks::Float32(&mask), 2, (3, 2), (99, 98), GRID).unwrap(), mask);
    }

    #[test]
    fn each_fault_has_its_status() {
        let weights = |masks: &[f32], size| mask_weights(Masks::Float32(masks), masks.len() / 6, size, (6, 4), GRID);
        let ones = [1.0; 6];
        for (second, status) in [
            ([0.0; 6], Status::MaskEmpty),
            ([-0.1; 6], Status::MaskInvalid),
            ([1.1; 6], Status::MaskInvalid),
            ([f32::NAN; 6], Status::MaskInvalid),
        ] {
            let error = weights(&[ones, second].concat(), (3, 2)).unwrap_err();
            assert_eq!((error.status, error.index), (status, Some(1)));
        }
        let error = weights(&ones, (2, 3)).unwrap_err();
        assert_eq!(error.status, Status::MaskMisshaped);
        assert!(error.message.contains("[1, 3, 2]; give [m, 4, 6]"), "{error}");
    }

    #[test]
    fn no_masks_have_no_weights() {
        assert_eq!(mask_weights(Masks::Bool(&[]), 0, (0, 0), (6, 4), GRID), Ok(Vec::new()));
    }
}
