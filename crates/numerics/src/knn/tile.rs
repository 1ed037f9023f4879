//! Products of two blocks of rows, and the bounds on distances that follow from them.

use super::cloud::{Bounds, Cloud, Product};
use super::frame::Range;
use tch::{Device, Kind, Tensor};

/// Rows of one set, to be multiplied with blocks of another.
pub(super) struct Band {
    product: Product,
    /// -2 is exact in every kind, and cheaper on the rows than on the products.
    factor: Tensor,
    bounds: Bounds,
}

impl Band {
    pub(super) fn new(product: Product, (cloud, range): (&Cloud, Range)) -> Self {
        let factor = cloud.factor(product, range) * -2.;
        Self { product, factor, bounds: cloud.bounds(product, range) }
    }

    /// Puts its products with a block into `tile`, whose memory is used again.
    pub(super) fn times(&self, (cloud, range): (&Cloud, Range), tile: &mut Tile) {
        let products = self.factor.matmul(&cloud.factor(self.product, range).tr());
        let products = products.to_device(Device::Cpu).to_kind(Kind::Float);
        tile.products.resize(products.numel(), 0.);
        products.copy_data(&mut tile.products, products.numel());
        tile.rounding = self.product.rounding();
        tile.rows.lower.clone_from(&self.bounds.lower);
        tile.rows.width.clone_from(&self.bounds.width);
        tile.columns = cloud.bounds(self.product, range);
    }
}

/// An interval for the squared distance, in the frame, of every pair of two blocks. It lies in the memory of the host, where
/// one pass compares and counts what would be five as operations on tensors.
#[derive(Default)]
pub(super) struct Tile {
    /// -2 x y of every pair, row by row.
    products: Vec<f32>,
    /// By what part of itself each may be off.
    rounding: f32,
    rows: Bounds,
    pub(super) columns: Bounds,
}

/// A row of a tile.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) products: &'a [f32],
    rounding: f32,
    lower: f32,
    width: f32,
}

impl Tile {
    /// Its rows.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let products = self.products.chunks_exact(self.columns.lower.len().max(1));
        products.zip(&self.rows.lower).zip(&self.rows.width).map(|((products, &lower), &width)| Line {
            products,
            rounding: self.rounding,
            lower,
            width,
        })
    }

    /// Takes a pair out: no comparison with its bounds holds from then on.
    pub(super) fn remove(&mut self, row: usize, column: usize) {
        self.products[row * self.columns.lower.len() + column] = f32::NAN;
    }
}

impl Line<'_> {
    /// Lower end of the interval of a pair: its product, and what its column adds.
    #[inline(always)]
    pub(super) fn lower(self, product: f32, column: f32) -> f32 {
        (product - self.rounding * product.abs()) + (self.lower + column)
    }

    /// Upper end: the lower one, and what its product and its column add.
    #[inline(always)]
    pub(super) fn upper(self, lower: f32, product: f32, width: f32) -> f32 {
        lower + ((self.width + width) + 2. * self.rounding * product.abs())
    }
}
