//! The grid of patches that an image is resized to.

/// Rows and columns of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Rows of patches.
    pub rows: u32,
    /// Columns of patches.
    pub columns: u32,
}

/// The grid of an image: the largest scale at which its patches number at most `max_patches`.
///
/// A binary search over the scale in doubles, as the released processor does it, step for step: another way to the same
/// optimum can end in another grid.
pub fn target_grid(width: u32, height: u32, patch: u32, max_patches: u32) -> Grid {
    const TOLERANCE: f64 = 1e-5;
    let at = |scale: f64| Grid { rows: cells(height, scale, patch), columns: cells(width, scale, patch) };
    let (mut low, mut high) = (TOLERANCE / 10.0, 100.0);
    while high - low >= TOLERANCE {
        let scale = (low + high) / 2.0;
        let Grid { rows, columns } = at(scale);
        if u64::from(rows) * u64::from(columns) <= u64::from(max_patches) {
            low = scale;
        } else {
            high = scale;
        }
    }
    at(low)
}

/// The first bucket that holds the whole patches of an image, or the last one.
///
/// # Panics
///
/// Panics if there are no buckets; a manifest that passed its checks has some.
pub fn bucket(width: u32, height: u32, patch: u32, buckets: &[u32]) -> u32 {
    let whole = u64::from(width / patch) * u64::from(height / patch);
    let fitting = buckets.iter().find(|bucket| whole <= u64::from(**bucket));
    *fitting.or(buckets.last()).expect("a model has buckets")
}

fn cells(size: u32, scale: f64, patch: u32) -> u32 {
    // A cast from a double saturates, and such a grid is over any number of patches.
    (f64::from(size) * scale / f64::from(patch)).ceil().max(1.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_fill_their_bucket_and_keep_the_aspect_ratio() {
        for (width, height, most, rows, columns) in
            [(1600, 1200, 256, 14, 18), (100, 100, 256, 16, 16), (1, 20_000, 128, 128, 1), (20_000, 1, 128, 1, 128)]
        {
            assert_eq!(target_grid(width, height, 16, most), Grid { rows, columns }, "{width}×{height}");
        }
    }

    #[test]
    fn a_grid_of_the_longest_sides_is_found() {
        let Grid { rows, columns } = target_grid(u32::MAX, u32::MAX, 16, 256);
        assert!(rows >= 1 && columns >= 1);
    }

    #[test]
    fn the_first_bucket_that_holds_the_whole_patches_is_taken() {
        let buckets = [128, 256, 1024];
        let sides = [(1, 1, 128), (16 * 128, 16, 128), (16 * 129, 16, 256), (4000, 3000, 1024)];
        for (width, height, expected) in sides {
            assert_eq!(bucket(width, height, 16, &buckets), expected, "{width}×{height}");
        }
    }
}
