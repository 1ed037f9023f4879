//! The nearest rows of each row, up to what an interval leaves open.

use super::cloud::{Cloud, Product};
use super::frame::{Range, blocks};
use super::tile::{Band, Tile};
use tch::Tensor;

/// Candidates kept beyond the k nearest, so that a row whose order is open can be settled among them.
const SPARE: usize = 16;
/// Columns that are compared at once.
const LANES: usize = 16;

/// Radii, as far as the candidates decide them.
pub(super) struct Candidates {
    /// Squared distances of the k-th nearest rows, for each k and row; those of open rows are not known.
    pub(super) radii: Vec<Vec<f64>>,
    /// Rows, by rising number, with so many near-equal distances that the list of candidates may end too early.
    pub(super) open: Vec<usize>,
}

impl Candidates {
    /// Decides for every row of `cloud` and each k of `ks` (in 1..n).
    pub(super) fn of_all(cloud: &Cloud, product: Product, ks: &[usize]) -> Self {
        let rows: Vec<i64> = (0..cloud.len()).collect();
        Nearest::of_all(cloud, product, keep(cloud, ks)).decide(&rows, cloud, ks)
    }

    /// The same for some `rows`; what it finds is numbered 0..rows.len().
    pub(super) fn of_rows(cloud: &Cloud, product: Product, rows: &[i64], ks: &[usize]) -> Self {
        let numbers = Tensor::from_slice(rows).to_device(cloud.rows.device());
        let selected = cloud.rows.index_select(0, &numbers);
        let queries = Cloud::new(&selected, cloud.frame, product);
        let nearest = Nearest::of_rows((&queries, rows), (cloud, product), keep(cloud, ks));
        nearest.decide(rows, cloud, ks)
    }
}

/// How many candidates to keep for a row.
fn keep(cloud: &Cloud, ks: &[usize]) -> usize {
    let largest = ks.iter().copied().max().unwrap_or(1);
    (largest + SPARE).min(cloud.len() as usize - 1)
}

/// For each row the rows with the smallest lower bounds.
struct Nearest {
    /// Candidates of a row.
    count: usize,
    /// `count` of each row, by rising lower bounds.
    kept: Vec<Candidate>,
}

/// A row, and bounds on its squared distance.
#[derive(Clone, Copy)]
struct Candidate {
    low: f32,
    high: f32,
    row: u32,
}

impl Nearest {
    fn none(rows: i64, count: usize) -> Self {
        let none = Candidate { low: f32::INFINITY, high: f32::INFINITY, row: 0 };
        Self { count, kept: vec![none; rows as usize * count] }
    }

    /// For all rows: one triangle of blocks serves both sides.
    fn of_all(cloud: &Cloud, product: Product, count: usize) -> Self {
        let (mut this, mut tile) = (Self::none(cloud.len(), count), Tile::default());
        for i in blocks(cloud.len()) {
            let band = Band::new(product, (cloud, i));
            for j in blocks(cloud.len()).filter(|j| j.0 >= i.0) {
                band.times((cloud, j), &mut tile);
                if i == j {
                    // A row is no neighbour of its own.
                    (0..i.1 as usize).for_each(|row| tile.remove(row, row));
                }
                this.scan(&tile, i, j, i != j);
            }
        }
        this
    }

    /// For `queries`, which are the rows `rows` of the cloud.
    fn of_rows((queries, rows): (&Cloud, &[i64]), (cloud, product): (&Cloud, Product), count: usize) -> Self {
        let (mut this, mut tile) = (Self::none(queries.len(), count), Tile::default());
        for i in blocks(queries.len()) {
            let band = Band::new(product, (queries, i));
            for j in blocks(cloud.len()) {
                band.times((cloud, j), &mut tile);
                let own = rows[i.0 as usize..].iter().take(i.1 as usize).enumerate();
                for (row, &itself) in own.filter(|(_, row)| (j.0..j.0 + j.1).contains(row)) {
                    tile.remove(row, (itself - j.0) as usize);
                }
                this.scan(&tile, i, j, false);
            }
        }
        this
    }

    /// Offers every pair of a tile to the list of its row and, if `mirrored`, to that of its column.
    fn scan(&mut self, tile: &Tile, i: Range, j: Range, mirrored: bool) {
        let (lower, width) = (&tile.columns.lower, &tile.columns.width);
        let (first_row, first_column) = (i.0 as usize, j.0 as usize);
        let mut limits: Vec<f32> = match mirrored {
            true => (0..lower.len()).map(|column| self.worst(first_column + column)).collect(),
            false => vec![f32::NEG_INFINITY; lower.len()],
        };
        for (row, line) in tile.lines().enumerate() {
            let mut limit = self.worst(first_row + row);
            for start in (0..lower.len()).step_by(LANES) {
                let lanes = start..(start + LANES).min(lower.len());
                let (products, parts) = (&line.products[lanes.clone()], &lower[lanes.clone()]);
                // Nearly all chunks hold nothing that is near: this loop is all that is done for them.
                let near = products.iter().zip(parts).zip(&limits[lanes.clone()]);
                let near = near.fold(false, |near, ((&product, &part), other)| {
                    let low = line.lower(product, part);
                    near | (low < limit) | (low < *other)
                });
                if !near {
                    continue;
                }
                for lane in lanes {
                    let product = line.products[lane];
                    let low = line.lower(product, lower[lane]);
                    let high = line.upper(low, product, width[lane]);
                    let (own, other) = (first_row + row, first_column + lane);
                    if low < limit {
                        limit = self.offer(own, Candidate { low, high, row: other as u32 });
                    }
                    if low < limits[lane] {
                        limits[lane] = self.offer(other, Candidate { low, high, row: own as u32 });
                    }
                }
            }
        }
    }

    /// The largest lower bound that a row has kept: what is not below it is of no interest.
    fn worst(&self, row: usize) -> f32 {
        self.kept[(row + 1) * self.count - 1].low
    }

    /// Takes up a candidate below the worst one of the row; the lower bound of the worst one then.
    fn offer(&mut self, row: usize, candidate: Candidate) -> f32 {
        let kept = &mut self.kept[row * self.count..(row + 1) * self.count];
        let mut at = kept.len() - 1;
        while at > 0 && kept[at - 1].low > candidate.low {
            kept[at] = kept[at - 1];
            at -= 1;
        }
        kept[at] = candidate;
        kept[kept.len() - 1].low
    }

    /// Squared distances of the k-th nearest rows of the queries, which are the rows `rows` of the cloud.
    fn decide(&self, rows: &[i64], cloud: &Cloud, ks: &[usize]) -> Candidates {
        let mut radii = vec![vec![f64::NAN; rows.len()]; ks.len()];
        let mut open = Vec::new();
        for (query, (kept, &row)) in self.kept.chunks_exact(self.count).zip(rows).enumerate() {
            let settled = ks.iter().zip(&mut radii).map(|(&k, radii)| {
                let radius = self.kth(kept, k, row as usize, cloud);
                radius.map(|radius| radii[query] = radius)
            });
            if settled.fold(false, |open, settled| open | settled.is_none()) {
                open.push(query);
            }
        }
        Candidates { radii, open }
    }

    /// Squared distance of the k-th nearest row, none if the candidates leave it open.
    ///
    /// The true value lies between the k-th smallest lower and the k-th smallest upper bound. Candidates wholly
    /// below or above that range need no exact value, and rows outside the list are wholly above it unless the list
    /// ends inside the range.
    fn kth(&self, kept: &[Candidate], k: usize, row: usize, cloud: &Cloud) -> Option<f64> {
        let mut highs: Vec<f32> = kept.iter().map(|candidate| candidate.high).collect();
        let (from, to) = (kept[k - 1].low, *highs.select_nth_unstable_by(k - 1, f32::total_cmp).1);
        let whole = self.count as i64 == cloud.len() - 1;
        if !whole && kept[self.count - 1].low <= to {
            return None;
        }
        let below = kept.iter().filter(|candidate| candidate.high < from).count();
        let between = kept.iter().filter(|candidate| candidate.high >= from && candidate.low <= to);
        let mut distances: Vec<f64> =
            between.map(|candidate| cloud.exact(row, cloud, candidate.row as usize)).collect();
        Some(*distances.select_nth_unstable_by(k - 1 - below, f64::total_cmp).1)
    }
}
