//! Antialiased resampling weights, as PIL's `precompute_coeffs` and torch's antialiased `interpolate` make them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Resampling filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Triangle, support 1.
    #[default]
    Bilinear,
    /// Keys's cubic with a = -0.5, support 2.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// For each output position along one axis, the input positions that count and their weights, which sum to 1.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    /// First input position and number of them.
    spans: Vec<(usize, usize)>,
    /// `stride` weights per output position, those past the span unused.
    weights: Vec<f64>,
    stride: usize,
}

impl Weights {
    /// Weights for an axis of `input` positions resampled to `output`; both positive.
    pub(crate) fn new(input: usize, output: usize, filter: Filter) -> Self {
        let scale = input as f64 / output as f64;
        // Shrinking widens the filter: that is the antialiasing.
        let filter_scale = scale.max(1.0);
        // PIL multiplies by the inverse; the last bit must be its own.
        let inverse = 1.0 / filter_scale;
        let support = filter.support() * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let mut spans = Vec::with_capacity(output);
        let mut weights = vec![0.0; output * stride];
        for (position, row) in weights.chunks_exact_mut(stride).enumerate() {
            let center = (position as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let row = &mut row[..end - first];
            for (offset, weight) in row.iter_mut().enumerate() {
                *weight = filter.weight(((first + offset) as f64 - center + 0.5) * inverse);
            }
            let sum: f64 = row.iter().sum();
            if sum != 0.0 {
                row.iter_mut().for_each(|weight| *weight /= sum);
            }
            spans.push((first, row.len()));
        }
        Self { spans, weights, stride }
    }

    /// Input positions and weights of each output position.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Range<usize>, &[f64])> {
        self.spans
            .iter()
            .zip(self.weights.chunks_exact(self.stride))
            .map(|(&(first, len), row)| (first..first + len, &row[..len]))
    }

    /// The same weights in another type.
    pub(crate) fn convert<T>(&self, to: impl Fn(f64) -> T) -> Vec<(Range<usize>, Vec<T>)> {
        self.iter().map(|(span, row)| (span, row.iter().map(|&weight| to(weight)).collect())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A constant stays constant, and no weight reads outside the input.
        #[test]
        fn weights_sum_to_one(input in 1usize..200, output in 1usize..200, bicubic: bool) {
            let filter = if bicubic { Filter::Bicubic } else { Filter::Bilinear };
            let weights = Weights::new(input, output, filter);
            prop_assert_eq!(weights.iter().count(), output);
            for (span, row) in weights.iter() {
                prop_assert!(span.end <= input && span.len() == row.len() && !row.is_empty());
                prop_assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn the_same_size_is_the_identity() {
        for (position, (span, row)) in Weights::new(5, 5, Filter::Bicubic).iter().enumerate() {
            for (input, &weight) in span.zip(row) {
                assert_eq!(weight, f64::from(u8::from(input == position)));
            }
        }
    }
}
