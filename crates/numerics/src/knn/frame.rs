//! Blocks of rows, and the frame in which they are compared.

use tch::{Kind, Tensor};

/// Rows of a block; its square bounds every intermediate matrix.
pub(super) const BLOCK: i64 = 1024;

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

/// What is subtracted from, and multiplied to, all rows before they are rounded: distances only scale.
pub(super) struct Frame {
    centre: Tensor,
    /// 1, or a power of two that brings norms so near to it that nothing overflows.
    pub(super) scale: f64,
}

impl Frame {
    /// For the first of some sets, and for others that are to be compared with it.
    pub(super) fn of(sets: &[&Tensor]) -> Self {
        let (first, dim) = (sets[0], sets[0].size()[1]);
        // Any centre will do as long as all sets use the same, so it may be rounded to their kind.
        let centre = match first.size()[0] {
            0 => Tensor::zeros([dim], (first.kind(), first.device())),
            _ => first.mean_dim(0, false, Kind::Double).to_kind(first.kind()),
        };
        let mut largest = 0f64;
        for set in sets {
            for range in blocks(set.size()[0]).filter(|_| dim > 0) {
                let (least, greatest) = (span(set, range) - &centre).aminmax(None, false);
                largest = largest.max(-least.double_value(&[])).max(greatest.double_value(&[]));
            }
        }
        let squared = largest.powi(2) * dim as f64;
        let fits = (1e-15..1e15).contains(&squared) || squared == 0. || !squared.is_finite();
        Self { centre, scale: if fits { 1. } else { (-0.5 * squared.log2()).round().exp2() } }
    }

    /// Some of `rows` in the frame: [b, d] float32.
    pub(super) fn block(&self, rows: &Tensor, range: Range) -> Tensor {
        let mut centred = span(rows, range) - &self.centre;
        if self.scale != 1. {
            centred = centred.g_mul_scalar_(self.scale);
        }
        centred.to_kind(Kind::Float)
    }
}
