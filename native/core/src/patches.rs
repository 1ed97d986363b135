//! An image's pixels to patches, exactly as the Python runtime makes them.

use crate::error::{Error, Result, Status};
use crate::grid::Grid;
use crate::messages::grouped;
use crate::resize::resize;
pub use crate::resize::Scratch;

/// Filter of a resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The triangle.
    Bilinear,
    /// Keys' cubic with a = -1/2.
    Bicubic,
}

/// Order of a pixel's bytes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFormat {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// Red, green, blue and alpha, which is dropped.
    Rgba,
    /// Blue, green, red and alpha, which is dropped.
    Bgra,
    /// One byte, which stands for all three colours.
    Gray,
}

/// Pixels of one image, in the caller's memory.
#[derive(Clone, Copy)]
pub struct Pixels<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) stride: usize,
    pub(crate) format: PixelFormat,
}

/// Pixels between the passes of a resize, as the Python runtime limits them: an image of a pixel's width may be small
/// in memory and 100,000s of pixels tall.
const MOST_BETWEEN_PASSES: u64 = 1 << 27;

impl PixelFormat {
    /// Bytes of a pixel.
    pub fn channels(self) -> usize {
        match self {
            PixelFormat::Rgb | PixelFormat::Bgr => 3,
            PixelFormat::Rgba | PixelFormat::Bgra => 4,
            PixelFormat::Gray => 1,
        }
    }

    /// Positions of red, green and blue in a pixel.
    pub(crate) fn colours(self) -> [usize; 3] {
        match self {
            PixelFormat::Rgb | PixelFormat::Rgba => [0, 1, 2],
            PixelFormat::Bgr | PixelFormat::Bgra => [2, 1, 0],
            PixelFormat::Gray => [0, 0, 0],
        }
    }
}

impl<'a> Pixels<'a> {
    /// Pixels of an image of `width` × `height`, whose rows begin `stride` bytes apart. The last row may end with its
    /// last pixel. Fails if the image has no pixels, rows overlap, or `data` is too short.
    pub fn new(data: &'a [u8], width: u32, height: u32, stride: usize, format: PixelFormat) -> Result<Pixels<'a>> {
        let refused = |message: String| Err(Error::new(Status::ImageUnsupported, message));
        if width == 0 || height == 0 {
            return refused(format!("an image has no pixels ({width}×{height}); leave it out."));
        }
        let row = (width as usize).checked_mul(format.channels());
        let Some(row) = row.filter(|row| *row <= stride) else {
            return refused(format!(
                "an image of {width}×{height} pixels has a stride of {stride} bytes, less than a row of {} bytes each; \
                 pass the bytes from one row to the next.",
                format.channels()
            ));
        };
        let needed = stride.checked_mul(height as usize - 1).and_then(|above| above.checked_add(row));
        if needed.is_none_or(|needed| needed > data.len()) {
            return refused(format!(
                "an image of {width}×{height} pixels with a stride of {stride} bytes does not fit its memory of {} \
                 bytes; pass all of its rows.",
                data.len()
            ));
        }
        Ok(Pixels { data, width, height, stride, format })
    }

    /// Pixels in a row.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Bytes of a row, without those that fill its stride.
    pub(crate) fn row(&self, y: usize) -> &'a [u8] {
        let start = y * self.stride;
        &self.data[start..start + self.width as usize * self.format.channels()]
    }
}

/// Resizes an image to `grid` patches of `patch` × `patch` pixels and writes them to `out`, in row order, each as (row,
/// column, channel).
///
/// Fails if the image is too tall to resize, or the memory for it runs out.
///
/// # Panics
///
/// Panics unless `out` has rows · columns · patch · patch · 3 bytes, at least one.
pub fn write_patches(
    pixels: &Pixels,
    grid: Grid,
    patch: u32,
    filter: Filter,
    scratch: &mut Scratch,
    out: &mut [u8],
) -> Result<()> {
    let width = u64::from(grid.columns) * u64::from(patch);
    let height = u64::from(grid.rows) * u64::from(patch);
    let bytes = u128::from(width) * u128::from(height) * 3;
    assert!(bytes > 0 && bytes == out.len() as u128, "the memory for patches has their size");
    let between = u128::from(width) * u128::from(pixels.height);
    if between > u128::from(MOST_BETWEEN_PASSES) {
        let message = format!(
            "an image of {}×{} pixels is too tall to become {} wide ({} pixels on the way, over the limit of {}); crop \
             it.",
            grouped(pixels.width.into()),
            grouped(pixels.height.into()),
            grouped(width),
            grouped(between.try_into().unwrap_or(u64::MAX)),
            grouped(MOST_BETWEEN_PASSES)
        );
        return Err(Error::new(Status::ImageTooLarge, message));
    }
    let side = patch as usize;
    let (line_bytes, patch_bytes) = (side * 3, side * side * 3);
    resize(pixels, width as usize, height as usize, filter, scratch, |y, line| {
        let patches = out.chunks_exact_mut(patch_bytes).skip(y / side * grid.columns as usize);
        for (piece, patch) in line.chunks_exact(line_bytes).zip(patches) {
            patch[y % side * line_bytes..][..line_bytes].copy_from_slice(piece);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_hold_their_rows_in_order() {
        let data: Vec<u8> = (0..4 * 6 * 3).collect();
        let pixels = Pixels::new(&data, 6, 4, 18, PixelFormat::Rgb).unwrap();
        let mut out = vec![0; data.len()];
        let grid = Grid { rows: 2, columns: 3 };
        write_patches(&pixels, grid, 2, Filter::Bilinear, &mut Scratch::default(), &mut out).unwrap();
        assert_eq!(out[..12], [0, 1, 2, 3, 4, 5, 18, 19, 20, 21, 22, 23]);
        assert_eq!(out[12..18], [6, 7, 8, 9, 10, 11]);
        assert_eq!(out[36..42], [36, 37, 38, 39, 40, 41]);
    }

    #[test]
    fn formats_are_read_as_red_green_blue() {
        let formats: [(PixelFormat, &[u8], [u8; 3]); 5] = [
            (PixelFormat::Rgb, &[1, 2, 3], [1, 2, 3]),
            (PixelFormat::Bgr, &[1, 2, 3], [3, 2, 1]),
            (PixelFormat::Rgba, &[1, 2, 3, 4], [1, 2, 3]),
            (PixelFormat::Bgra, &[1, 2, 3, 4], [3, 2, 1]),
            (PixelFormat::Gray, &[9], [9, 9, 9]),
        ];
        for (format, data, expected) in formats {
            let pixels = Pixels::new(data, 1, 1, data.len(), format).unwrap();
            let mut out = [0; 3];
            let grid = Grid { rows: 1, columns: 1 };
            write_patches(&pixels, grid, 1, Filter::Bicubic, &mut Scratch::default(), &mut out).unwrap();
            assert_eq!(out, expected, "{format:?}");
        }
    }

    #[test]
    fn memory_that_holds_no_such_image_is_refused() {
        let data = [0; 30];
        for (width, height, stride) in [(0, 1, 9), (1, 0, 9), (3, 3, 8), (3, 4, 9), (3, 3, 11), (3, 2, usize::MAX)] {
            let error = Pixels::new(&data, width, height, stride, PixelFormat::Rgb).err().unwrap();
            assert_eq!(error.status, Status::ImageUnsupported, "{width}×{height}, {stride}");
        }
        assert!(Pixels::new(&data, 3, 3, 10, PixelFormat::Rgb).is_ok(), "the last row has no padding");
    }

    #[test]
    fn a_strip_that_is_too_tall_is_refused() {
        let data = vec![0; 1 << 20];
        let pixels = Pixels::new(&data, 1, 1 << 20, 1, PixelFormat::Gray).unwrap();
        let grid = Grid { rows: 1, columns: 129 };
        let mut out = vec![0; 129 * 3];
        let error = write_patches(&pixels, grid, 1, Filter::Bilinear, &mut Scratch::default(), &mut out).unwrap_err();
        assert_eq!(error.status, Status::ImageTooLarge);
        assert!(error.message.contains("1×1,048,576 pixels"), "{error}");
    }
}
