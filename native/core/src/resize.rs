//! Pillow's resize in integers: horizontally, rounded to 8 bits, then vertically.
//!
//! The order shows in the result, since each pass rounds. Within a pass it does not: sums of integers are exact. Weights
//! are multiples of 2^-22; AVX2's kernels split each as a · 2^11 + b, so that 16-bit multiply-adds do the work.
//! A horizontal row is made when a vertical window first reaches it, and only the rows of one window are kept.

use std::collections::TryReserveError;

use crate::error::{Error, Result, Status};
use crate::patches::{Filter, Pixels};

/// Fraction bits of a weight.
const BITS: u32 = 22;
/// Bits of the lower half of a split weight.
#[cfg(target_arch = "x86_64")]
const LOW_BITS: u32 = 11;
const HALF: i32 = 1 << (BITS - 1);
/// Rows that the horizontal pass makes at once, so that each weight is read once for all of them.
const ROWS: usize = 4;
/// Pixels that the horizontal kernels read at once.
const BLOCK: usize = 4;
/// Bytes that kernels read and write at once, so that buffers are longer by as many.
const LANES: usize = 16;
const COLOURS: usize = 3;

/// Memory that resizes reuse.
#[derive(Default)]
pub struct Scratch {
    across: Axis,
    down: Axis,
    #[cfg(target_arch = "x86_64")]
    blocks: Vec<Block>,
    #[cfg(target_arch = "x86_64")]
    pairs: Vec<[i32; 2]>,
    /// Horizontally resized rows; row y has the place y modulo their number.
    ring: Vec<u8>,
    /// Copies of rows that end too close to the end of the caller's memory.
    copies: Vec<u8>,
    line: Vec<u8>,
}

/// Weights of one pass.
#[derive(Default)]
struct Axis {
    spans: Vec<Span>,
    weights: Vec<i32>,
}

/// Pixels that one pixel of the result is made of.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    count: usize,
    /// Position of the first weight.
    at: usize,
}

/// Weights of [`BLOCK`] neighbouring pixels, each split and repeated for every colour.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Block {
    high: [i16; LANES],
    low: [i16; LANES],
}

/// Instructions that the passes use. All give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Kernel {
    fn best() -> Kernel {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            return Kernel::Avx2;
        }
        // Every processor of this architecture has it.
        #[cfg(target_arch = "aarch64")]
        return Kernel::Neon;
        #[cfg(not(target_arch = "aarch64"))]
        Kernel::Scalar
    }
}

/// Resizes an image to `width` × `height` pixels of red, green and blue. Gives each row and its number to `emit`, from
/// the top down.
pub(crate) fn resize(
    pixels: &Pixels,
    width: usize,
    height: usize,
    filter: Filter,
    scratch: &mut Scratch,
    emit: impl FnMut(usize, &[u8]),
) -> Result<()> {
    resize_by(Kernel::best(), pixels, width, height, filter, scratch, emit).map_err(|_| {
        let (from, to) = ((pixels.width, pixels.height), (width, height));
        let message = format!(
            "the machine has no memory to resize an image of {}×{} pixels to {}×{}; free some.",
            from.0, from.1, to.0, to.1
        );
        Error::new(Status::OutOfMemory, message)
    })
}

fn resize_by(
    kernel: Kernel,
    pixels: &Pixels,
    width: usize,
    height: usize,
    filter: Filter,
    scratch: &mut Scratch,
    mut emit: impl FnMut(usize, &[u8]),
) -> std::result::Result<(), TryReserveError> {
    let Scratch {
        across,
        down,
        #[cfg(target_arch = "x86_64")]
        blocks,
        #[cfg(target_arch = "x86_64")]
        pairs,
        ring,
        copies,
        line,
    } = scratch;
    across.fill(pixels.width as usize, width, filter)?;
    down.fill(pixels.height as usize, height, filter)?;
    #[cfg(target_arch = "x86_64")]
    if kernel == Kernel::Avx2 {
        across.split_into(blocks)?;
    }
    let line_bytes = width * COLOURS;
    // A kernel writes whole lanes, and the last of them reaches over the end of the row.
    let ring_bytes = line_bytes.next_multiple_of(LANES) + LANES;
    let kept = down.spans.iter().map(|span| span.count).max().unwrap_or(0) + ROWS;
    fit(ring, kept * ring_bytes)?;
    fit(line, ring_bytes)?;
    let mut ready = 0;
    for (y, span) in down.spans.iter().enumerate() {
        ready = ready.max(span.first);
        while ready < span.first + span.count {
            let last = (ready + ROWS).min(pixels.height as usize) - 1;
            // At the lower border, the last row is made more than once.
            let rows = std::array::from_fn(|number| (ready + number).min(last));
            let places = rows.map(|row| row % kept * ring_bytes);
            match kernel {
                Kernel::Scalar => across.scalar_rows(pixels, rows, places, ring),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => {
                    let rows = readable_rows(pixels, rows, across.reach(pixels.format.channels()), copies)?;
                    // SAFETY: the processor has AVX2. Each row is as long as the kernel reads, and so is its place.
                    unsafe { avx2::rows(&across.spans, blocks, pixels.format, rows, places, ring) }
                }
                #[cfg(target_arch = "aarch64")]
                Kernel::Neon => {
                    let rows = readable_rows(pixels, rows, across.reach(pixels.format.channels()), copies)?;
                    // SAFETY: each row is as long as the kernel reads.
                    unsafe { neon::rows(&across.spans, &across.weights, pixels.format, rows, places, ring) }
                }
            }
            ready = last + 1;
        }
        let weights = &down.weights[span.at..span.at + span.count];
        let place = |number: usize| (span.first + number) % kept * ring_bytes;
        match kernel {
            Kernel::Scalar => scalar_line(weights, place, ring, &mut line[..line_bytes]),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => {
                pair_up(weights, pairs)?;
                // SAFETY: the processor has AVX2. The line and each place are whole lanes long.
                unsafe { avx2::line(pairs, span.count, place, ring, &mut line[..line_bytes.next_multiple_of(LANES)]) }
            }
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon => neon::line(weights, place, ring, &mut line[..line_bytes.next_multiple_of(LANES)]),
        }
        emit(y, &line[..line_bytes]);
    }
    Ok(())
}

/// Makes a buffer at least `size` long; its content means nothing.
fn fit(buffer: &mut Vec<u8>, size: usize) -> std::result::Result<(), TryReserveError> {
    if buffer.len() < size {
        buffer.try_reserve_exact(size - buffer.len())?;
        buffer.resize(size, 0);
    }
    Ok(())
}

impl Axis {
    /// Weights that resize `before` pixels to `after`, in doubles as Pillow computes them.
    fn fill(&mut self, before: usize, after: usize, filter: Filter) -> std::result::Result<(), TryReserveError> {
        self.spans.clear();
        self.weights.clear();
        self.spans.try_reserve_exact(after)?;
        let scale = before as f64 / after as f64;
        let stretch = scale.max(1.0);
        let (reach, kernel): (f64, fn(f64) -> f64) = match filter {
            Filter::Bilinear => (1.0, triangle),
            Filter::Bicubic => (2.0, cubic),
        };
        let support = reach * stretch;
        let mut values = Vec::new();
        for index in 0..after {
            let centre = (index as f64 + 0.5) * scale;
            // A cast of a negative double gives zero.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(before);
            let span = Span { first, count: end - first, at: self.weights.len() };
            values.clear();
            values.try_reserve(span.count)?;
            self.weights.try_reserve(span.count)?;
            values.extend((first..end).map(|pixel| kernel((pixel as f64 - centre + 0.5) * (1.0 / stretch))));
            // From positive zero, because a sum of an iterator begins with negative zero.
            let total = values.iter().fold(0.0, |total, value| total + value);
            let fixed = |value: f64| {
                let scaled = value / total * f64::from(1 << BITS);
                (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
            };
            self.weights.extend(values.iter().map(|value| fixed(*value)));
            self.spans.push(span);
        }
        Ok(())
    }

    /// The weights in blocks, as the kernels of the horizontal pass read them; those beyond a span are zero.
    #[cfg(target_arch = "x86_64")]
    fn split_into(&self, blocks: &mut Vec<Block>) -> std::result::Result<(), TryReserveError> {
        blocks.clear();
        blocks.try_reserve(self.spans.iter().map(|span| span.count.div_ceil(BLOCK)).sum())?;
        for span in &self.spans {
            for weights in self.weights[span.at..span.at + span.count].chunks(BLOCK) {
                let mut block = Block { high: [0; LANES], low: [0; LANES] };
                for (number, weight) in weights.iter().enumerate() {
                    for colour in 0..COLOURS {
                        // Two halves of two pixels each: the pair of each colour side by side.
                        let lane = number / 2 * (LANES / 2) + colour * 2 + number % 2;
                        [block.high[lane], block.low[lane]] = split(*weight);
                    }
                }
                blocks.push(block);
            }
        }
        Ok(())
    }

    /// Bytes of a row that the kernels read, of pixels of `step` bytes.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn reach(&self, step: usize) -> usize {
        let ends = self.spans.iter().map(|span| span.first + span.count.next_multiple_of(BLOCK));
        ends.max().unwrap_or(0) * step + LANES
    }

    fn scalar_rows(&self, pixels: &Pixels, rows: [usize; ROWS], places: [usize; ROWS], ring: &mut [u8]) {
        let (step, colours) = (pixels.format.channels(), pixels.format.colours());
        for (row, place) in rows.into_iter().zip(places) {
            let row = pixels.row(row);
            let line = ring[place..].chunks_exact_mut(COLOURS);
            for (span, pixel) in self.spans.iter().zip(line) {
                let weights = &self.weights[span.at..span.at + span.count];
                let mut totals = [HALF; COLOURS];
                for (weight, bytes) in weights.iter().zip(row[span.first * step..].chunks_exact(step)) {
                    for (total, colour) in totals.iter_mut().zip(colours) {
                        *total = total.wrapping_add(weight.wrapping_mul(i32::from(bytes[colour])));
                    }
                }
                pixel.copy_from_slice(&totals.map(to_byte));
            }
        }
    }
}

fn scalar_line(weights: &[i32], place: impl Fn(usize) -> usize, ring: &[u8], line: &mut [u8]) {
    for (at, byte) in line.iter_mut().enumerate() {
        let parts =
            weights.iter().enumerate().map(|(row, weight)| weight.wrapping_mul(i32::from(ring[place(row) + at])));
        *byte = to_byte(parts.fold(HALF, i32::wrapping_add));
    }
}

fn to_byte(total: i32) -> u8 {
    (total >> BITS).clamp(0, 255) as u8
}

/// A weight as a · 2^11 + b. Weights are below 2^23, so that a is below 2^12.
#[cfg(target_arch = "x86_64")]
fn split(weight: i32) -> [i16; 2] {
    [(weight >> LOW_BITS) as i16, (weight & ((1 << LOW_BITS) - 1)) as i16]
}

/// Split weights of two rows at a time, as one number for each half.
#[cfg(target_arch = "x86_64")]
fn pair_up(weights: &[i32], pairs: &mut Vec<[i32; 2]>) -> std::result::Result<(), TryReserveError> {
    pairs.clear();
    pairs.try_reserve(weights.len().div_ceil(2))?;
    pairs.extend(weights.chunks(2).map(|weights| {
        let ([high, low], [next_high, next_low]) = (split(weights[0]), split(weights.get(1).copied().unwrap_or(0)));
        let both = |first: i16, second: i16| i32::from(second) << 16 | i32::from(first as u16);
        [both(high, next_high), both(low, next_low)]
    }));
    Ok(())
}

/// Rows of an image, each at least `reach` bytes long; a row that ends before is copied.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn readable_rows<'a>(
    pixels: &Pixels<'a>,
    rows: [usize; ROWS],
    reach: usize,
    copies: &'a mut Vec<u8>,
) -> std::result::Result<[&'a [u8]; ROWS], TryReserveError> {
    let readable = |row: usize| pixels.data[row * pixels.stride..].get(..reach);
    if rows.iter().any(|row| readable(*row).is_none()) {
        fit(copies, ROWS * reach)?;
        for (copy, row) in copies.chunks_exact_mut(reach).zip(rows) {
            let row = pixels.row(row);
            copy[..row.len()].copy_from_slice(row);
        }
    }
    let copies = &*copies;
    Ok(std::array::from_fn(|number| {
        readable(rows[number]).unwrap_or_else(|| &copies[number * reach..(number + 1) * reach])
    }))
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

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

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Block, Span, BITS, BLOCK, COLOURS, HALF, LANES, LOW_BITS, ROWS};
    use crate::patches::PixelFormat;

    /// Resizes rows horizontally, each to its place in the ring.
    ///
    /// # Safety
    /// Each of `rows` has [`super::Axis::reach`] bytes. `blocks` are those of `spans`. Each place has three bytes for
    /// each span, and one more.
    #[target_feature(enable = "avx2")]
    pub unsafe fn rows(
        spans: &[Span],
        blocks: &[Block],
        format: PixelFormat,
        rows: [&[u8]; ROWS],
        places: [usize; ROWS],
        ring: &mut [u8],
    ) {
        let step = format.channels();
        let order = order(format);
        let mut blocks = blocks.iter();
        for (x, span) in spans.iter().enumerate() {
            let (mut highs, mut lows) = ([_mm256_setzero_si256(); ROWS], [_mm256_setzero_si256(); ROWS]);
            let mut at = span.first * step;
            for block in blocks.by_ref().take(span.count.div_ceil(BLOCK)) {
                // SAFETY: a block is two times 32 bytes, and each row has LANES bytes from here.
                unsafe {
                    let high = _mm256_load_si256(block.high.as_ptr().cast());
                    let low = _mm256_load_si256(block.low.as_ptr().cast());
                    for row in 0..ROWS {
                        debug_assert!(at + LANES <= rows[row].len());
                        let bytes = _mm_loadu_si128(rows[row].as_ptr().add(at).cast());
                        let pixels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), order);
                        highs[row] = _mm256_add_epi32(highs[row], _mm256_madd_epi16(pixels, high));
                        lows[row] = _mm256_add_epi32(lows[row], _mm256_madd_epi16(pixels, low));
                    }
                }
                at += BLOCK * step;
            }
            let half = _mm_set1_epi32(HALF);
            let mut totals = [half; ROWS];
            for row in 0..ROWS {
                let both = joined(highs[row], lows[row]);
                let sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
                totals[row] = _mm_srai_epi32::<{ BITS as i32 }>(_mm_add_epi32(sum, half));
            }
            let [first, second, third, fourth] = totals;
            let bytes = _mm_packus_epi16(_mm_packs_epi32(first, second), _mm_packs_epi32(third, fourth));
            let mut pixels = [0u8; LANES];
            // SAFETY: the array has LANES bytes.
            unsafe { _mm_storeu_si128(pixels.as_mut_ptr().cast(), bytes) };
            for (place, pixel) in places.into_iter().zip(pixels.as_chunks::<4>().0) {
                // The fourth byte is overwritten by the next pixel.
                ring[place + x * COLOURS..][..4].copy_from_slice(pixel);
            }
        }
    }

    /// Makes a line of the vertical pass.
    ///
    /// # Safety
    /// `pairs` are the weights of `count` rows, at least one. The line's length is a multiple of [`LANES`], and each
    /// place in the ring is as long.
    #[target_feature(enable = "avx2")]
    pub unsafe fn line(pairs: &[[i32; 2]], count: usize, place: impl Fn(usize) -> usize, ring: &[u8], line: &mut [u8]) {
        let half = _mm256_set1_epi32(HALF);
        for (number, bytes) in line.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let zero = _mm256_setzero_si256();
            let (mut high, mut low) = ([zero; 2], [zero; 2]);
            for (pair, [pair_high, pair_low]) in pairs.iter().enumerate() {
                // A row without a partner is its own, with weight zero.
                let (first, second) = (place(2 * pair), place((2 * pair + 1).min(count - 1)));
                let load = |place: usize| {
                    let lanes = &ring[place + number * LANES..][..LANES];
                    // SAFETY: the slice has LANES bytes.
                    unsafe { _mm_loadu_si128(lanes.as_ptr().cast()) }
                };
                let (first, second) = (load(first), load(second));
                let (pair_high, pair_low) = (_mm256_set1_epi32(*pair_high), _mm256_set1_epi32(*pair_low));
                let halves = [_mm_unpacklo_epi8(first, second), _mm_unpackhi_epi8(first, second)];
                for part in 0..2 {
                    let values = _mm256_cvtepu8_epi16(halves[part]);
                    high[part] = _mm256_add_epi32(high[part], _mm256_madd_epi16(values, pair_high));
                    low[part] = _mm256_add_epi32(low[part], _mm256_madd_epi16(values, pair_low));
                }
            }
            let [left, right] = [0, 1].map(|part| {
                _mm256_srai_epi32::<{ BITS as i32 }>(_mm256_add_epi32(joined(high[part], low[part]), half))
            });
            // Packing works within each half of a register, so that the middle quarters change places.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(left, right));
            let packed = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            // SAFETY: the array has LANES bytes.
            unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), packed) };
        }
    }

    /// Sums of split weights put together.
    #[target_feature(enable = "avx2")]
    fn joined(high: __m256i, low: __m256i) -> __m256i {
        _mm256_add_epi32(_mm256_slli_epi32::<{ LOW_BITS as i32 }>(high), low)
    }

    /// Where the bytes of four pixels go: two pixels to each half, the pair of each colour side by side in 16 bits.
    #[target_feature(enable = "avx2")]
    fn order(format: PixelFormat) -> __m256i {
        let mut order = [-1i8; 2 * LANES];
        for pixel in 0..BLOCK {
            for (colour, position) in format.colours().into_iter().enumerate() {
                let lane = pixel / 2 * LANES + colour * 4 + pixel % 2 * 2;
                order[lane] = (pixel * format.channels() + position) as i8;
            }
        }
        // SAFETY: the array has 32 bytes.
        unsafe { _mm256_loadu_si256(order.as_ptr().cast()) }
    }
}

/// Sums of 32 bits as they are: NEON multiplies and adds four at once.
#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use super::{Span, BITS, COLOURS, HALF, LANES, ROWS};
    use crate::patches::PixelFormat;

    /// Resizes rows horizontally, each to its place in the ring.
    ///
    /// # Safety
    /// Each of `rows` has [`super::Axis::reach`] bytes. `weights` are those of `spans`.
    pub unsafe fn rows(
        spans: &[Span],
        weights: &[i32],
        format: PixelFormat,
        rows: [&[u8]; ROWS],
        places: [usize; ROWS],
        ring: &mut [u8],
    ) {
        let (step, colours) = (format.channels(), format.colours());
        for (x, span) in spans.iter().enumerate() {
            // SAFETY: NEON is always there.
            let mut totals = [unsafe { vdupq_n_s32(HALF) }; ROWS];
            let mut at = span.first * step;
            for weight in &weights[span.at..span.at + span.count] {
                for (total, row) in totals.iter_mut().zip(rows) {
                    debug_assert!(at + 4 <= row.len());
                    // SAFETY: each row has four bytes from here; those behind the pixel are not used.
                    *total = unsafe {
                        let bytes = row.as_ptr().add(at).cast::<u32>().read_unaligned();
                        let words = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes)));
                        vmlaq_n_s32(*total, vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words))), *weight)
                    };
                }
                at += step;
            }
            for (total, place) in totals.into_iter().zip(places) {
                let bytes = to_bytes(total, total).to_ne_bytes();
                ring[place + x * COLOURS..][..COLOURS].copy_from_slice(&colours.map(|colour| bytes[colour]));
            }
        }
    }

    /// Makes a line of the vertical pass, whose length is a multiple of [`LANES`], from places as long in the ring.
    pub fn line(weights: &[i32], place: impl Fn(usize) -> usize, ring: &[u8], line: &mut [u8]) {
        for (number, bytes) in line.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            // SAFETY: NEON is always there.
            let mut totals = [unsafe { vdupq_n_s32(HALF) }; 4];
            for (row, weight) in weights.iter().enumerate() {
                let lanes = &ring[place(row) + number * LANES..][..LANES];
                // SAFETY: the slice has LANES bytes.
                unsafe {
                    let lanes = vld1q_u8(lanes.as_ptr());
                    let (left, right) = (vmovl_u8(vget_low_u8(lanes)), vmovl_high_u8(lanes));
                    let left = [vmovl_u16(vget_low_u16(left)), vmovl_high_u16(left)];
                    let right = [vmovl_u16(vget_low_u16(right)), vmovl_high_u16(right)];
                    for (total, values) in totals.iter_mut().zip(left.into_iter().chain(right)) {
                        *total = vmlaq_n_s32(*total, vreinterpretq_s32_u32(values), *weight);
                    }
                }
            }
            let [first, second, third, fourth] = totals;
            bytes[..LANES / 2].copy_from_slice(&to_bytes(first, second).to_ne_bytes());
            bytes[LANES / 2..].copy_from_slice(&to_bytes(third, fourth).to_ne_bytes());
        }
    }

    /// Eight sums as bytes, in the order of memory.
    fn to_bytes(first: int32x4_t, second: int32x4_t) -> u64 {
        // SAFETY: NEON is always there.
        unsafe {
            let words = [first, second].map(|sums| vqmovn_s32(vshrq_n_s32::<{ BITS as i32 }>(sums)));
            vget_lane_u64::<0>(vreinterpret_u64_u8(vqmovun_s16(vcombine_s16(words[0], words[1]))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patches::PixelFormat;

    const FORMATS: [PixelFormat; 5] =
        [PixelFormat::Rgb, PixelFormat::Bgr, PixelFormat::Rgba, PixelFormat::Bgra, PixelFormat::Gray];

    /// Numbers that look random and are the same in every run.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self, below: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as usize % below
        }
    }

    fn resized(kernel: Kernel, pixels: &Pixels, width: usize, height: usize, filter: Filter) -> Vec<u8> {
        let (mut scratch, mut result) = (Scratch::default(), Vec::new());
        // What an earlier call left must not show.
        scratch.ring = vec![0xAB; 1000];
        resize_by(kernel, pixels, width, height, filter, &mut scratch, |y, line| {
            assert_eq!(y * line.len(), result.len());
            result.extend_from_slice(line);
        })
        .unwrap();
        result
    }

    /// The specification, step by step: both passes over whole images, weights and sums in wide integers.
    fn slowly(pixels: &Pixels, width: usize, height: usize, filter: Filter) -> Vec<u8> {
        let (before, above) = (pixels.width as usize, pixels.height as usize);
        let mut image = vec![vec![[0u8; 3]; before]; above];
        for (y, row) in image.iter_mut().enumerate() {
            for (pixel, bytes) in row.iter_mut().zip(pixels.row(y).chunks(pixels.format.channels())) {
                *pixel = pixels.format.colours().map(|colour| bytes[colour]);
            }
        }
        let pass = |line: &[[u8; 3]], after: usize| -> Vec<[u8; 3]> {
            (0..after).map(|index| slow_pixel(line, after, index, filter)).collect()
        };
        let narrow: Vec<_> = image.iter().map(|row| pass(row, width)).collect();
        let columns: Vec<_> =
            (0..width).map(|x| pass(&narrow.iter().map(|row| row[x]).collect::<Vec<_>>(), height)).collect();
        (0..height).flat_map(|y| columns.iter().flat_map(move |column| column[y])).collect()
    }

    fn slow_pixel(line: &[[u8; 3]], after: usize, index: usize, filter: Filter) -> [u8; 3] {
        let scale = line.len() as f64 / after as f64;
        let stretch = if scale > 1.0 { scale } else { 1.0 };
        let support = stretch * if filter == Filter::Bilinear { 1.0 } else { 2.0 };
        let centre = (index as f64 + 0.5) * scale;
        let first = ((centre - support + 0.5).trunc() as i64).max(0);
        let end = ((centre + support + 0.5).trunc() as i64).min(line.len() as i64);
        let value = |pixel: i64| {
            let x = ((pixel as f64 - centre + 0.5) * (1.0 / stretch)).abs();
            match filter {
                Filter::Bilinear => {
                    if x < 1.0 {
                        1.0 - x
                    } else {
                        0.0
                    }
                }
                Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
                Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
                Filter::Bicubic => 0.0,
            }
        };
        let mut total = 0.0;
        for pixel in first..end {
            total += value(pixel);
        }
        let mut sums = [1i64 << 21; 3];
        for pixel in first..end {
            let scaled = value(pixel) / total * 4_194_304.0;
            let weight = (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }).trunc() as i64;
            for (sum, byte) in sums.iter_mut().zip(line[pixel as usize]) {
                *sum += weight * i64::from(byte);
            }
        }
        sums.map(|sum| (sum >> 22).clamp(0, 255) as u8)
    }

    fn kernels() -> Vec<Kernel> {
        let mut kernels = vec![Kernel::Scalar, Kernel::best()];
        kernels.dedup();
        kernels
    }

    fn check(numbers: &mut Numbers, sides: [usize; 4]) {
        let [before, above, width, height] = sides;
        let format = FORMATS[numbers.next(FORMATS.len())];
        let row = before * format.channels();
        let stride = row + [0, 0, 1, 7][numbers.next(4)];
        // Of the last row, only the pixels are there.
        let contrast = numbers.next(2) == 0;
        let data: Vec<u8> = (0..stride * (above - 1) + row)
            .map(|_| if contrast { [0, 255][numbers.next(2)] } else { numbers.next(256) as u8 })
            .collect();
        let pixels = Pixels::new(&data, before as u32, above as u32, stride, format).unwrap();
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            let expected = slowly(&pixels, width, height, filter);
            for kernel in kernels() {
                let result = resized(kernel, &pixels, width, height, filter);
                assert!(result == expected, "{kernel:?} {filter:?} {format:?} {sides:?} {stride}");
            }
        }
    }

    #[test]
    fn every_kernel_gives_the_bytes_of_the_specification() {
        let mut numbers = Numbers(20_26);
        for _ in 0..400 {
            let sides = std::array::from_fn(|_| 1 + numbers.next(60));
            check(&mut numbers, sides);
        }
    }

    #[test]
    fn so_does_it_for_shapes_at_the_border() {
        let mut numbers = Numbers(7);
        for sides in [
            [1, 1, 1, 1],
            [1, 1, 33, 17],
            [1, 12_000, 16, 32],
            [12_000, 1, 32, 16],
            [3, 2, 3, 2],
            [64, 48, 64, 24],
            [64, 48, 32, 48],
            [2, 300, 48, 300],
            [640, 5, 1, 1],
            [5, 640, 1, 1],
        ] {
            for _ in 0..FORMATS.len() {
                check(&mut numbers, sides);
            }
        }
    }

    #[test]
    fn scratch_of_another_image_does_not_show() {
        let mut numbers = Numbers(99);
        let mut scratch = Scratch::default();
        for _ in 0..60 {
            let [before, above, width, height] = std::array::from_fn(|_| 1 + numbers.next(90));
            let data: Vec<u8> = (0..before * above * 3).map(|_| numbers.next(256) as u8).collect();
            let pixels = Pixels::new(&data, before as u32, above as u32, before * 3, PixelFormat::Rgb).unwrap();
            let mut result = Vec::new();
            resize(&pixels, width, height, Filter::Bicubic, &mut scratch, |_, line| result.extend_from_slice(line))
                .unwrap();
            assert!(result == resized(Kernel::Scalar, &pixels, width, height, Filter::Bicubic));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_split_weight_is_whole() {
        for weight in [0, 1, -1, 2047, 2048, -2048, -2049, 1 << 22, (1 << 23) - 1, -(1 << 22)] {
            let [high, low] = split(weight).map(i32::from);
            assert_eq!((high << 11) + low, weight);
            assert!((0..2048).contains(&low));
        }
    }
}
