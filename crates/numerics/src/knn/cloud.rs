//! A set of rows in blocks, and bounds on distances between blocks.

use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Rows of a block; its square bounds every intermediate matrix.
pub(super) const BLOCK: i64 = 1024;
/// Values of a buffer of row pairs that are computed in full: a megabyte in float64, to stay in the cache.
const PAIR_VALUES: i64 = 1 << 17;
/// Far below every distance that matters in a frame, far above what underflow can take away.
const FLOOR: f64 = 1e-30;

/// First row and number of rows of a block.
pub(super) type Range = (i64, i64);

/// All blocks of so many rows.
pub(super) fn blocks(rows: i64) -> impl Iterator<Item = Range> + Clone {
    (0..rows).step_by(BLOCK as usize).map(move |start| (start, BLOCK.min(rows - start)))
}

/// The rows of a block.
pub(super) fn span(tensor: &Tensor, (start, length): Range) -> Tensor {
    tensor.narrow(0, start, length)
}

/// Squared norms [b] of rows [b, d], float64.
fn squared_norms(rows: &Tensor) -> Tensor {
    rows.to_kind(Kind::Double).square().sum_dim_intlist(1, false, Kind::Double)
}

/// In what precision products of rows are formed. It decides the width of intervals and the speed, no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Product {
    /// bfloat16 with float32 sums.
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

    /// Half the width of an interval, relative to the sum of the two squared norms.
    ///
    /// A float32 product of d terms is off by at most d u |x||y| with u = 2^-24, and 2|x||y| <= |x|^2 + |y|^2; the
    /// 32 covers the rounding of rows, norms, radii and sums. bfloat16, v = 2^-8, rounds both factors and the
    /// result: 3 v + O(v^2).
    fn slack(self, dim: i64) -> f64 {
        let single = (dim as f64 + 32.) * 2f64.powi(-24);
        match self {
            Self::Single => single,
            Self::Half => 3.05 * 2f64.powi(-8) + 2. * single,
        }
    }
}

/// What is subtracted from, and multiplied to, all rows before they are rounded: distances only scale.
pub(super) struct Frame {
    centre: Tensor,
    /// A power of two that brings the largest norm to about 1, so that nothing overflows.
    pub(super) scale: f64,
}

impl Frame {
    pub(super) fn of(points: &Tensor) -> Self {
        // Any centre will do as long as both sets use the same, so it may be rounded to their kind.
        let centre = match points.size()[0] {
            0 => Tensor::zeros([points.size()[1]], (points.kind(), points.device())),
            _ => points.mean_dim(0, false, Kind::Double).to_kind(points.kind()),
        };
        let mut largest = 0f64;
        for range in blocks(points.size()[0]) {
            let norms = squared_norms(&(span(points, range) - &centre));
            largest = largest.max(norms.max().double_value(&[]));
        }
        let usable = largest > 0. && largest.is_finite();
        Self { centre, scale: if usable { (-0.5 * largest.log2()).round().exp2() } else { 1. } }
    }
}

/// A set of rows, and how its blocks are prepared.
pub(super) struct Cloud<'a> {
    /// The rows [n, d] as given, float32 or float64.
    pub(super) rows: &'a Tensor,
    pub(super) frame: &'a Frame,
    /// What products are prepared for.
    pub(super) product: Product,
    /// Squared norms [n] of the rows in the frame, float32.
    norms: Tensor,
    /// Rows in the frame [n, d] bfloat16, if products are formed of them.
    half: Option<Tensor>,
}

impl<'a> Cloud<'a> {
    pub(super) fn new(rows: &'a Tensor, frame: &'a Frame, product: Product) -> Self {
        let (n, device) = (rows.size()[0], rows.device());
        let norms = Tensor::zeros([n], (Kind::Float, device));
        let half = (product == Product::Half).then(|| Tensor::zeros(rows.size(), (Kind::BFloat16, device)));
        let this = Self { rows, frame, product, norms, half };
        for range in blocks(n) {
            let block = this.block(range);
            span(&this.norms, range).copy_(&squared_norms(&block));
            if let Some(half) = &this.half {
                span(half, range).copy_(&block);
            }
        }
        this
    }

    /// Number of rows.
    pub(super) fn len(&self) -> i64 {
        self.rows.size()[0]
    }

    /// Rows in the frame: [b, d] float32.
    fn block(&self, range: Range) -> Tensor {
        let centred = span(self.rows, range) - &self.frame.centre;
        (centred * self.frame.scale).to_kind(Kind::Float)
    }

    /// Rows as factors of a product.
    fn factor(&self, product: Product, range: Range) -> Tensor {
        match (&self.half, product) {
            (Some(half), Product::Half) => span(half, range),
            _ => self.block(range),
        }
    }

    /// How far upper bounds lie above lower ones: a part [n] of each of the two rows, to be added.
    pub(super) fn widths(&self, product: Product) -> Tensor {
        &self.norms * (2. * product.slack(self.rows.size()[1])) + FLOOR
    }

    /// Squared distances between rows `i` of this set and rows `j` of the other, pair by pair, float64.
    pub(super) fn exact(&self, i: &Tensor, other: &Cloud, j: &Tensor) -> Tensor {
        let (pairs, dim) = (i.size()[0], self.rows.size()[1].max(1));
        let step = (PAIR_VALUES / dim).max(1);
        let out = Tensor::zeros([pairs], (Kind::Double, i.device()));
        for start in (0..pairs).step_by(step as usize) {
            let range = (start, step.min(pairs - start));
            let left = self.rows.index_select(0, &span(i, range)).to_kind(Kind::Double);
            let right = other.rows.index_select(0, &span(j, range)).to_kind(Kind::Double);
            span(&out, range).copy_(&squared_norms(&(left - right)));
        }
        out
    }
}

/// Bounds [a, b] float32 on the squared distances, in the frame, of two blocks.
pub(super) struct Interval {
    pub(super) low: Tensor,
    pub(super) high: Tensor,
}

impl Interval {
    pub(super) fn between(product: Product, (x, i): (&Cloud, Range), (y, j): (&Cloud, Range)) -> Self {
        let low = lower_bounds(product, (x, i), (y, j));
        let widths = span(&x.widths(product), i).unsqueeze(1) + span(&y.widths(product), j);
        Self { high: widths + &low, low }
    }
}

/// The lower bounds alone.
pub(super) fn lower_bounds(product: Product, (x, i): (&Cloud, Range), (y, j): (&Cloud, Range)) -> Tensor {
    let shrink = 1. - product.slack(x.rows.size()[1]);
    let part = |cloud: &Cloud, range| span(&cloud.norms, range) * shrink - FLOOR / 2.;
    let mut low = part(x, i).unsqueeze(1) + part(y, j);
    // -2 is exact in every kind, and cheaper on the rows than on the product.
    low.g_add_(&(x.factor(product, i) * -2.).matmul(&y.factor(product, j).tr()))
}
