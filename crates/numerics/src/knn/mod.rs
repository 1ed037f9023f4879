//! Nearest-neighbour radii and ball counts in bounded memory, exact at the speed of low-precision products.
//!
//! Squared distances of a block of rows to a block of rows come from one matrix product of centred rows, together
//! with a rigorous bound on its error: every pair gets an interval that holds the true value. Only pairs whose
//! interval leaves a comparison open are computed again, by differences in float64: in float32 about one in 10^5 for
//! 2048-d Inception features, in bfloat16 one in 10^3. So every result is that of float64 differences, ties and
//! duplicates included, and the precision of the product decides the speed alone. A set's distances to itself are
//! computed for one triangle only.
//!
//! Memory beyond the inputs, n rows of d features in each of two sets, b = 1024 rows in a block, m = k + 16:
//! - rows in bfloat16, where its products pay: 2 n d bytes for each set, 195 MiB at 50,000 x 2048;
//! - six matrices [b, b] float32 or bool and their index pairs: 25 MiB, and 64 MiB in the worst case of all open;
//! - two centred blocks [b, d] float32, and in float64 while they are made from it: 24 MiB at d = 2048;
//! - candidates [n, m] (float32 and int64): 13 MiB at n = 50,000, k = 5;
//! - recomputed pairs: 4 MiB, whatever their number.
//!
//! So two sets of 50,000 x 2048 float32 (782 MiB) need 1.4 GiB in all, where three n x n matrices would be 30 GB.

mod candidates;
mod cloud;

use crate::check;
use candidates::Candidates;
use cloud::{Cloud, Frame, Interval, Product, Range, blocks, span};
use equipoise_base::{Result, ensure};
use tch::{IndexOp, Kind, Tensor};

/// Squared distance from every row of `points` [n, d] to its k-th nearest other row, for each k of `ks`: [K, n]
/// float64.
///
/// # Errors
/// 65 unless `points` is finite, 78 when some k is 0 or there are not more than k rows.
pub fn squared_radii(points: &Tensor, ks: &[usize]) -> Result<Tensor> {
    radii_by(Product::fastest(points), points, ks)
}

fn radii_by(product: Product, points: &Tensor, ks: &[usize]) -> Result<Tensor> {
    let (n, _) = check::features("features", points)?;
    let wrong = ks.iter().find(|&&k| k == 0 || k as i64 >= n);
    if let Some(k) = wrong {
        equipoise_base::bail!(
            Config,
            "{k} nearest neighbours among {n} rows: k must be above 0 and below {n}"
        )
    }
    if ks.is_empty() {
        return Ok(Tensor::zeros([0, n], (Kind::Double, points.device())));
    }
    let points = single_or_double(points);
    let frame = Frame::of(&points);
    let cloud = Cloud::new(&points, &frame, product);
    let all = Candidates::of_all(&cloud, ks);
    let mut open = all.open;
    if product == Product::Half && !open.is_empty() {
        let rows = Tensor::from_slice(&open).to_device(points.device());
        let some = Candidates::of_rows(&cloud, &rows, ks);
        let _ = all.radii.shallow_clone().index_copy_(1, &rows, &some.radii);
        open = some.open.into_iter().map(|at| open[at as usize]).collect();
    }
    for row in open {
        all.radii.i((.., row)).copy_(&full_row(&cloud, row, ks));
    }
    Ok(all.radii)
}

/// Squared distances [K] of the k-th nearest other rows by differences to every row.
fn full_row(cloud: &Cloud, row: i64, ks: &[usize]) -> Tensor {
    let others: Vec<i64> = (0..cloud.len()).filter(|&other| other != row).collect();
    let others = Tensor::from_slice(&others).to_device(cloud.rows.device());
    let (sorted, _) = cloud.exact(&others.full_like(row), cloud, &others).sort(0, false);
    let at: Vec<i64> = ks.iter().map(|&k| k as i64 - 1).collect();
    sorted.index_select(0, &Tensor::from_slice(&at).to_device(sorted.device()))
}

/// How many points the balls around a set hold, and how many balls hold each point.
#[derive(Debug)]
pub struct BallCounts {
    /// Points of the other set inside each ball: [K, number of centres] int64.
    pub per_centre: Tensor,
    /// Balls that hold each point of the other set: [K, number of points] int64.
    pub per_point: Tensor,
}

impl BallCounts {
    fn zeros(radii: &Tensor, points: i64) -> Self {
        let options = (Kind::Int64, radii.device());
        let (sets, centres) = (radii.size()[0], radii.size()[1]);
        Self {
            per_centre: Tensor::zeros([sets, centres], options),
            per_point: Tensor::zeros([sets, points], options),
        }
    }

    /// Adds a block [centres, points] of the k-th set of balls.
    fn add(&self, k: i64, inside: &Tensor, centres: Range, points: Range) {
        let sum = |dim: i64| inside.sum_dim_intlist(dim, false, Kind::Int64);
        let _ = span(&self.per_centre.get(k), centres).g_add_(&sum(1));
        let _ = span(&self.per_point.get(k), points).g_add_(&sum(0));
    }
}

/// Counts for open balls around `x` [n, d] with squared radii `x_radii` [K, n] and around `y` [m, d] with
/// `y_radii` [K, m], each over the other set: distance strictly below the radius.
///
/// # Errors
/// 65 unless both sets are finite and of the same dimension, and the radii fit them.
pub fn ball_counts(
    x: &Tensor,
    y: &Tensor,
    x_radii: &Tensor,
    y_radii: &Tensor,
) -> Result<(BallCounts, BallCounts)> {
    counts_by(Product::fastest(x), (x, x_radii), (y, y_radii))
}

fn counts_by(
    mut product: Product,
    (x, x_radii): (&Tensor, &Tensor),
    (y, y_radii): (&Tensor, &Tensor),
) -> Result<(BallCounts, BallCounts)> {
    let ((n, dim), (m, other)) = (check::features("first set", x)?, check::features("second set", y)?);
    ensure!(dim == other, BadData, "the first set has {dim} features per row, the second {other}");
    for (radii, rows) in [(x_radii, n), (y_radii, m)] {
        let size = radii.size();
        ensure!(size.len() == 2 && size[1] == rows, BadData, "radii of shape {size:?} for {rows} rows");
    }
    let (x, y) = (single_or_double(x), single_or_double(y));
    let frame = Frame::of(&x);
    let (x, y) = (Cloud::new(&x, &frame, product), Cloud::new(&y, &frame, product));
    let (of_x, of_y) = (BallCounts::zeros(x_radii, m), BallCounts::zeros(y_radii, n));
    for i in blocks(n) {
        for j in blocks(m) {
            let radii_of_x = (0..x_radii.size()[0]).map(|k| span(&x_radii.get(k), i).unsqueeze(1));
            let radii_of_y = (0..y_radii.size()[0]).map(|k| span(&y_radii.get(k), j).unsqueeze(0));
            let radii: Vec<Tensor> = radii_of_x.chain(radii_of_y).collect();
            let mut answers = Answers::of(product, (&x, i), (&y, j), &radii);
            // So many pairs in full cost more than the product in float32; the next block will be no better.
            if product == Product::Half && answers.open() > i.1 * j.1 / 256 {
                product = Product::Single;
                answers = Answers::of(product, (&x, i), (&y, j), &radii);
            }
            for (k, inside) in answers.settle((&x, i), (&y, j), &radii).into_iter().enumerate() {
                match k as i64 - x_radii.size()[0] {
                    below @ ..0 => of_x.add(below + x_radii.size()[0], &inside, i, j),
                    k => of_y.add(k, &inside.tr(), j, i),
                }
            }
        }
    }
    Ok((of_x, of_y))
}

/// For each set of balls, which pairs of a block are surely inside, and which are open.
struct Answers(Vec<(Tensor, Tensor)>);

impl Answers {
    /// `radii` are squared and broadcast over the block.
    fn of(product: Product, x: (&Cloud, Range), y: (&Cloud, Range), radii: &[Tensor]) -> Self {
        let Interval { low, high } = Interval::between(product, x, y);
        let answer = |radii: &Tensor| {
            let scaled = (radii * x.0.frame.scale.powi(2)).to_kind(Kind::Float);
            let inside = high.lt_tensor(&scaled);
            let open = low.lt_tensor(&scaled).logical_xor(&inside).nonzero();
            (inside, open)
        };
        Self(radii.iter().map(answer).collect())
    }

    /// Number of open pairs.
    fn open(&self) -> i64 {
        self.0.iter().map(|(_, open)| open.size()[0]).sum()
    }

    /// Settles the open pairs by differences: [a, b] bool for each set of balls.
    fn settle(self, (x, i): (&Cloud, Range), (y, j): (&Cloud, Range), radii: &[Tensor]) -> Vec<Tensor> {
        let settle = |((mut inside, open), radii): ((Tensor, Tensor), &Tensor)| {
            if open.size()[0] > 0 {
                let (row, column) = (open.i((.., 0)), open.i((.., 1)));
                let distance = x.exact(&(&row + i.0), y, &(&column + j.0));
                let limit = radii.expand_as(&inside).index(&[Some(&row), Some(&column)]);
                let _ = inside.index_put_(&[Some(&row), Some(&column)], &distance.lt_tensor(&limit), false);
            }
            inside
        };
        self.0.into_iter().zip(radii).map(settle).collect()
    }
}

/// Narrower kinds as float32, which holds them exactly.
fn single_or_double(points: &Tensor) -> Tensor {
    match points.kind() {
        Kind::Double => points.shallow_clone(),
        _ => points.to_kind(Kind::Float),
    }
}

#[cfg(test)]
mod tests;
