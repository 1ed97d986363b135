//! Vectors to scores, by the formulas in a manifest. Sums are taken in float64 and rounded once.

use crate::manifest::{Activation, Score};

/// The least length that a vector is divided by, so that a zero vector stays zero.
const LEAST_LENGTH: f64 = 1e-12;

/// Brings each vector of `width` numbers to length one; a zero vector stays zero.
pub fn normalize(vectors: &mut [f32], width: usize) {
    for vector in vectors.chunks_exact_mut(width) {
        let length = length(vector);
        for value in vector {
            *value = (f64::from(*value) / length) as f32;
        }
    }
}

/// exp(logit_scale) · cosine + logit_bias of each image's vector with each text's, [n, m] into `out`.
pub fn logits(images: &[f32], texts: &[f32], width: usize, score: &Score, out: &mut [f32]) {
    let scale = score.logit_scale.exp();
    let text_lengths: Vec<f64> = texts.chunks_exact(width).map(length).collect();
    let mut cells = out.iter_mut();
    for image in images.chunks_exact(width) {
        let image_length = length(image);
        for (text, text_length) in texts.chunks_exact(width).zip(&text_lengths) {
            let product: f64 = image.iter().zip(text).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let cell = cells.next().expect("one cell for each pair");
            *cell = (product / (image_length * text_length) * scale + score.logit_bias) as f32;
        }
    }
}

/// Turns logits [n, m] into probabilities: a sigmoid of each, or a softmax over the texts of an image.
pub fn probabilities(logits: &mut [f32], texts: usize, activation: Activation) {
    match activation {
        Activation::Sigmoid => {
            for logit in logits {
                // exp of negative numbers only, so that it cannot overflow.
                let value = f64::from(*logit);
                let decay = (-value.abs()).exp();
                *logit = (if value >= 0.0 { 1.0 } else { decay } / (1.0 + decay)) as f32;
            }
        }
        Activation::Softmax => {
            for row in logits.chunks_exact_mut(texts.max(1)) {
                let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f64> =
                    row.iter().map(|logit| (f64::from(*logit) - f64::from(largest)).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for (cell, weight) in row.iter_mut().zip(weights) {
                    *cell = (weight / sum) as f32;
                }
            }
        }
    }
}

fn length(vector: &[f32]) -> f64 {
    let squares: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
    squares.sqrt().max(LEAST_LENGTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORE: Score = Score { activation: Activation::Sigmoid, logit_scale: 2.0, logit_bias: -1.0 };

    #[test]
    fn logits_do_not_depend_on_lengths() {
        let mut out = [0.0; 4];
        logits(&[3.0, 0.0, 0.0, 0.0], &[5.0, 5.0, -2.0, 0.0], 2, &SCORE, &mut out);
        let scale = 2.0_f64.exp();
        let expected = [scale * 0.5_f64.sqrt() - 1.0, -scale - 1.0, -1.0, -1.0].map(|value| value as f32);
        for (got, wanted) in out.iter().zip(expected) {
            assert!((got - wanted).abs() <= 1e-6 * wanted.abs(), "{out:?}");
        }
    }

    #[test]
    fn probabilities_do_not_overflow() {
        let mut out = [0.0, 1e4, -1e4];
        probabilities(&mut out, 3, Activation::Sigmoid);
        assert_eq!(out, [0.5, 1.0, 0.0]);
        let mut out = [1e4, 1e4, -1e4, 0.0, 0.0, 2.0_f32.ln()];
        probabilities(&mut out, 3, Activation::Softmax);
        assert_eq!(out, [0.5, 0.5, 0.0, 0.25, 0.25, 0.5]);
        probabilities(&mut [], 0, Activation::Softmax);
    }

    #[test]
    fn a_zero_vector_stays_zero() {
        let mut vectors = [3.0, 4.0, 0.0, 0.0];
        normalize(&mut vectors, 2);
        assert_eq!(vectors, [0.6, 0.8, 0.0, 0.0]);
    }
}
