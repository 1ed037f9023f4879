//! The nearest rows of each row, up to what an interval leaves open.

use super::cloud::{Cloud, Product, Range, blocks, lower_bounds, span};
use crate::check;
use std::collections::BTreeSet;
use tch::{Device, IndexOp, Kind, Tensor};

/// Candidates kept beyond the k nearest, so that a row whose order is open can be settled among them.
const SPARE: i64 = 16;

/// Radii, as far as the candidates decide them.
pub(super) struct Candidates {
    /// Squared distances of the k-th nearest rows: [K, n] float64, exact but for the open rows.
    pub(super) radii: Tensor,
    /// Rows, by rising number, with so many near-equal distances that the list of candidates may end too early.
    pub(super) open: Vec<i64>,
}

impl Candidates {
    /// Decides for every row of `cloud` and each k of `ks` (in 1..n), by products as the cloud is prepared for.
    pub(super) fn of_all(cloud: &Cloud, ks: &[usize]) -> Self {
        let rows = Tensor::arange(cloud.len(), (Kind::Int64, cloud.rows.device()));
        Self::among(&Nearest::of_all(cloud, keep(cloud, ks)), (cloud, &rows), (cloud, cloud.product), ks)
    }

    /// The same for some `rows` [q] int64, by float32 products; what it finds is numbered 0..q.
    pub(super) fn of_rows(cloud: &Cloud, rows: &Tensor, ks: &[usize]) -> Self {
        let selected = cloud.rows.index_select(0, rows);
        let queries = Cloud::new(&selected, cloud.frame, Product::Single);
        let nearest = Nearest::of_rows((&queries, rows), cloud, keep(cloud, ks));
        Self::among(&nearest, (&queries, rows), (cloud, Product::Single), ks)
    }

    fn among(nearest: &Nearest, queries: (&Cloud, &Tensor), by: (&Cloud, Product), ks: &[usize]) -> Self {
        let mut open = BTreeSet::new();
        let radii: Vec<Tensor> = ks.iter().map(|&k| nearest.kth(queries, by, k as i64, &mut open)).collect();
        Self { radii: Tensor::stack(&radii, 0), open: open.into_iter().collect() }
    }
}

/// How many candidates to keep for a row.
fn keep(cloud: &Cloud, ks: &[usize]) -> i64 {
    let largest = ks.iter().copied().max().unwrap_or(1) as i64;
    (largest + SPARE).min(cloud.len() - 1)
}

/// The rows with the smallest lower bounds.
struct Nearest {
    /// Lower bounds [q, m] float32, rising.
    low: Tensor,
    /// Row numbers [q, m] int64.
    index: Tensor,
}

impl Nearest {
    fn none(rows: i64, count: i64, device: Device) -> Self {
        Self {
            low: Tensor::full([rows, count], f64::INFINITY, (Kind::Float, device)),
            index: Tensor::zeros([rows, count], (Kind::Int64, device)),
        }
    }

    /// For all rows: one triangle of blocks serves both sides.
    fn of_all(cloud: &Cloud, count: i64) -> Self {
        let this = Self::none(cloud.len(), count, cloud.rows.device());
        for i in blocks(cloud.len()) {
            for j in blocks(cloud.len()).filter(|j| j.0 >= i.0) {
                let mut low = lower_bounds(cloud.product, (cloud, i), (cloud, j));
                if i == j {
                    // A row is no neighbour of its own.
                    this.offer(i, &low.fill_diagonal_(f64::INFINITY, false), j.0);
                } else {
                    this.offer(i, &low, j.0);
                    this.offer(j, &low.tr().contiguous(), i.0);
                }
            }
        }
        this
    }

    /// For `queries`, which are the rows `rows` of the cloud.
    fn of_rows((queries, rows): (&Cloud, &Tensor), cloud: &Cloud, count: i64) -> Self {
        let this = Self::none(queries.len(), count, cloud.rows.device());
        for i in blocks(queries.len()) {
            let own = span(rows, i).unsqueeze(1);
            for j in blocks(cloud.len()) {
                let low = lower_bounds(Product::Single, (queries, i), (cloud, j));
                let itself = own.eq_tensor(&(Tensor::arange(j.1, (Kind::Int64, rows.device())) + j.0));
                this.offer(i, &low.masked_fill(&itself, f64::INFINITY), j.0);
            }
        }
        this
    }

    /// Keeps the best of what rows `range` have and of a block of columns that starts at `column`.
    fn offer(&self, range: Range, low: &Tensor, column: i64) {
        let count = self.low.size()[1];
        let (low, at) = low.topk(count.min(low.size()[1]), 1, false, false);
        let (mut own_low, mut own_index) = (span(&self.low, range), span(&self.index, range));
        let all_index = Tensor::cat(&[&own_index, &(at + column)], 1);
        let (best, order) = Tensor::cat(&[&own_low, &low], 1).topk(count, 1, false, true);
        own_low.copy_(&best);
        own_index.copy_(&all_index.gather(1, &order, false));
    }

    /// Squared distance [q] of the k-th nearest row, float64; notes the queries that stay open.
    ///
    /// The true value lies between the k-th smallest lower and the k-th smallest upper bound. Candidates wholly
    /// below or above that range need no exact value, and rows outside the list are wholly above it unless the list
    /// ends inside the range.
    fn kth(
        &self,
        (queries, rows): (&Cloud, &Tensor),
        (cloud, product): (&Cloud, Product),
        k: i64,
        open: &mut BTreeSet<i64>,
    ) -> Tensor {
        let widths = cloud.widths(product).index_select(0, &self.index.view(-1)).view_as(&self.low);
        let high = &self.low + queries.widths(product).unsqueeze(1) + widths;
        let from = self.low.narrow(1, k - 1, 1);
        let (sorted, _) = high.sort(1, false);
        let to = sorted.narrow(1, k - 1, 1);
        let (below, above) = (high.lt_tensor(&from), self.low.gt_tensor(&to));
        let mut values = (above.to_kind(Kind::Double) - below.to_kind(Kind::Double)) * f64::MAX;
        let pairs = below.logical_or(&above).logical_not().nonzero();
        let (query, slot) = (pairs.i((.., 0)), pairs.i((.., 1)));
        let partner = self.index.index(&[Some(&query), Some(&slot)]);
        let distances = cloud.exact(&rows.index_select(0, &query), cloud, &partner);
        let _ = values.index_put_(&[Some(&query), Some(&slot)], &distances, false);
        let count = self.low.size()[1];
        if count < cloud.len() - 1 {
            let last = self.low.narrow(1, count - 1, 1);
            open.extend(check::to_i64(&last.le_tensor(&to).view(-1).nonzero()));
        }
        let (sorted, _) = values.sort(1, false);
        sorted.i((.., k - 1))
    }
}
