//! A set of rows, how far products of them may be off, and their distances in full.

use super::frame::{Frame, Range, blocks, span};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Far below every distance that matters in a frame, far above what underflow can take away.
const FLOOR: f64 = 1e-30;
/// About what part of a row rounding to bfloat16 takes away; any value gives bounds, this one narrow ones.
const LOSS: f64 = 0.0016;
/// Sums side by side, so many that a processor can keep all its adders busy.
const SUMS: usize = 32;

/// In what precision products of rows are formed. It decides the width of intervals and the speed, no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Product {
    /// bfloat16, with sums in float32 that are rounded to bfloat16.
    Half,
    /// float32.
    Single,
}

impl Product {
    /// The one to take for these rows on this machine.
    ///
    /// bfloat16 is five times as fast where the CPU has it and a hundred times as slow where it is emulated, which
    /// also depends on what oneDNN is allowed to use: so it is tried. On a GPU its sums may be rounded too.
    pub(super) fn fastest(rows: &Tensor) -> Self {
        const SAMPLE: i64 = 128;
        const LARGE: i64 = 1 << 21;
        let Ok((n, dim)) = rows.size2() else { return Self::Single };
        if rows.device() != Device::Cpu || n < SAMPLE || n * dim < LARGE {
            return Self::Single;
        }
        let time = |kind| {
            let sample = rows.narrow(0, 0, SAMPLE).to_kind(kind);
            let run = |_| {
                let start = Instant::now();
                let _ = sample.matmul(&sample.tr());
                start.elapsed()
            };
            (0..3).map(run).min().unwrap_or(Duration::MAX)
        };
        if time(Kind::BFloat16) * 2 < time(Kind::Float) { Self::Half } else { Self::Single }
    }

    /// By what part of itself a product may be off because it was rounded at the end.
    pub(super) fn rounding(self) -> f32 {
        match self {
            Self::Single => 0.,
            // 2^-8, and a little for its square.
            Self::Half => 1.01 / 256.,
        }
    }
}

/// A set of rows, and how its blocks are prepared.
pub(super) struct Cloud<'a> {
    /// The rows [n, d] as given, float32 or float64.
    pub(super) rows: &'a Tensor,
    pub(super) frame: &'a Frame,
    /// The same in the memory of the host, contiguous.
    values: Tensor,
    /// Squared norms of the rows in the frame.
    norms: Vec<f32>,
    half: Option<Half>,
}

/// Rows as factors of bfloat16 products.
struct Half {
    /// [n, d] bfloat16, in the frame.
    rows: Tensor,
    /// How far a product may be off, for each row.
    errors: Vec<f32>,
}

impl<'a> Cloud<'a> {
    pub(super) fn new(rows: &'a Tensor, frame: &'a Frame, product: Product) -> Self {
        let values = rows.to_device(Device::Cpu).contiguous();
        let mut this = Self { rows, frame, values, norms: Vec::new(), half: None };
        if product == Product::Half {
            let halved = Tensor::zeros(rows.size(), (Kind::BFloat16, rows.device()));
            this.half = Some(Half { rows: halved, errors: Vec::new() });
        }
        let (mut whole, mut rounded) = (Vec::new(), Vec::new());
        for range in blocks(this.len()) {
            this.measure(range, &mut whole, &mut rounded);
        }
        this
    }

    /// Takes up the next block of rows: norms, roundings. The buffers are used again.
    fn measure(&mut self, range: Range, whole: &mut Vec<f32>, rounded: &mut Vec<f32>) {
        let dim = self.dim();
        let block = self.frame.block(self.rows, range);
        copy(&block, whole);
        let lines = whole.chunks_exact(dim.max(1));
        let norms = lines.clone().map(|row| sum_of_squares(row, |_, value| f64::from(value)));
        let norms: Vec<f64> = if dim == 0 { vec![0.; range.1 as usize] } else { norms.collect() };
        if let Some(half) = &mut self.half {
            let mut halved = span(&half.rows, range);
            halved.copy_(&block);
            copy(&halved.to_kind(Kind::Float), rounded);
            for ((row, rounded), norm) in lines.zip(rounded.chunks_exact(dim)).zip(&norms) {
                let kept = sum_of_squares(rounded, |_, value| f64::from(value));
                let lost = sum_of_squares(row, |at, value| f64::from(value) - f64::from(rounded[at]));
                let error = 2. * unit(dim) * norm + LOSS * kept + lost / LOSS + lost;
                half.errors.push(above(error));
            }
        }
        self.norms.extend(norms.into_iter().map(|norm| norm as f32));
    }

    /// Number of rows.
    pub(super) fn len(&self) -> i64 {
        self.rows.size()[0]
    }

    fn dim(&self) -> usize {
        self.rows.size()[1] as usize
    }

    /// Rows as factors of a product.
    pub(super) fn factor(&self, product: Product, range: Range) -> Tensor {
        match (&self.half, product) {
            (Some(half), Product::Half) => span(&half.rows, range),
            _ => self.frame.block(self.rows, range),
        }
    }

    /// What rows add to the lower bound of a squared distance, beside the product, and by what upper bounds lie above.
    ///
    /// With x = h + l, where h is x in bfloat16, 2 x y differs from 2 h_x h_y by
    /// 2 |h_x||l_y| + 2 |l_x||h_y| + 2 |l_x||l_y|, and 2 a b <= c a^2 + b^2 / c for any c: so each row adds
    /// c |h|^2 + |l|^2 / c + |l|^2, whichever the other row is. A sum of d products in float32 is off by at most
    /// d u |x||y| with u = 2^-24, and 2 |x||y| <= |x|^2 + |y|^2; 32 u more cover the rounding of rows, norms, radii
    /// and sums.
    pub(super) fn bounds(&self, product: Product, (start, length): Range) -> Bounds {
        let range = start as usize..(start + length) as usize;
        let single = |norm: &f32| above(unit(self.dim()) * f64::from(*norm));
        let errors: Vec<f32> = match (&self.half, product) {
            (Some(half), Product::Half) => half.errors[range.clone()].to_vec(),
            _ => self.norms[range.clone()].iter().map(single).collect(),
        };
        let floor = FLOOR as f32;
        Bounds {
            lower: self.norms[range]
                .iter()
                .zip(&errors)
                .map(|(norm, error)| norm - error - floor / 2.)
                .collect(),
            width: errors.iter().map(|error| 2. * error + floor).collect(),
        }
    }

    /// Squared distance between row `i` of this set and row `j` of the other, by differences in float64.
    pub(super) fn exact(&self, i: usize, other: &Cloud, j: usize) -> f64 {
        let dim = self.dim();
        match self.values.kind() {
            Kind::Double => {
                let (left, right) =
                    (&slice::<f64>(&self.values)[i * dim..], &slice::<f64>(&other.values)[j * dim..]);
                sum_of_squares(&left[..dim], |at, value| value - right[at])
            }
            _ => {
                let (left, right) =
                    (&slice::<f32>(&self.values)[i * dim..], &slice::<f32>(&other.values)[j * dim..]);
                sum_of_squares(&left[..dim], |at, value| f64::from(value) - f64::from(right[at]))
            }
        }
    }
}

/// What the rows of a block contribute to bounds.
#[derive(Default)]
pub(super) struct Bounds {
    pub(super) lower: Vec<f32>,
    pub(super) width: Vec<f32>,
}

/// How far a float32 product of `dim` terms may be off, relative to the sum of the two squared norms.
fn unit(dim: usize) -> f64 {
    (dim as f64 + 32.) * 2f64.powi(-24)
}

/// A bound is rounded to float32 so that it stays one.
fn above(bound: f64) -> f32 {
    (bound * (1. + 1e-6)) as f32
}

/// Sum of the squares of `term` of each value and its place, in an order that depends on their number alone.
fn sum_of_squares<T: Copy>(values: &[T], term: impl Fn(usize, T) -> f64) -> f64 {
    let mut sums = [0f64; SUMS];
    let whole = values.len() - values.len() % SUMS;
    for start in (0..whole).step_by(SUMS) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += term(start + lane, values[start + lane]).powi(2);
        }
    }
    let rest: f64 = (whole..values.len()).map(|at| term(at, values[at]).powi(2)).sum();
    rest + sums.iter().sum::<f64>()
}

/// The values of a tensor, in a buffer on the host.
fn copy(tensor: &Tensor, buffer: &mut Vec<f32>) {
    buffer.resize(tensor.numel(), 0.);
    tensor.to_device(Device::Cpu).copy_data(buffer, tensor.numel());
}

/// The values of a contiguous tensor of the host, where they lie.
fn slice<T>(tensor: &Tensor) -> &[T] {
    if tensor.numel() == 0 {
        return &[];
    }
    debug_assert!(tensor.is_contiguous() && tensor.device() == Device::Cpu);
    // SAFETY: contiguous memory of so many values of this kind, which the tensor keeps alive and nobody writes.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}
