//! Nearest-neighbour radii and ball counts in bounded memory, exact at the speed of low-precision products.
//!
//! Squared distances of a block of rows to a block of rows come from one matrix product of centred rows, together
//! with a rigorous bound on its error: every pair gets an interval that holds the true value. Only pairs whose
//! interval leaves a comparison open are computed again, by differences in float64. So every result is that of float64
//! differences, ties and duplicates included, and the precision of the product decides the speed alone. A set's
//! distances to itself are computed for one triangle only.
//!
//! | module | owns |
//! |---|---|
//! | [`frame`] | blocks of rows, and what is subtracted from all before they are rounded |
//! | [`cloud`] | a set of rows: norms, how far products with it may be off, distances in full |
//! | [`tile`] | products of two blocks, and the interval of each pair |
//! | [`candidates`] | the nearest rows of each row |
//! | [`balls`] | pairs that lie within a radius |
//!
//! Memory beyond the inputs, n rows of d features in each of two sets, b = 1024 rows in a block, m = k + 16:
//! - rows in bfloat16, where its products pay: 2 n d bytes for each set, 195 MiB at 50,000 x 2048;
//! - products of two blocks, [b, b] float32, at most three times: 12 MiB, and 8 MiB for each radius if all pairs are open;
//! - two centred blocks [b, d] float32, twice while they are measured: 32 MiB at d = 2048;
//! - candidates [n, m], 12 bytes each: 12 MiB at n = 50,000, k = 5.
//!
//! So two sets of 50,000 x 2048 float32 (782 MiB) need 1.2 GiB in all, where three n x n matrices would be 30 GB.

mod balls;
mod candidates;
mod cloud;
mod frame;
mod tile;

use crate::check;
use candidates::Candidates;
use cloud::{Cloud, Product};
use equipoise_base::Result;
use frame::{BLOCK, Frame};
use tch::{Kind, Tensor};

pub use balls::{BallCounts, ball_counts};

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
    let device = points.device();
    let points = single_or_double(points);
    let frame = Frame::of(&[&points]);
    let cloud = Cloud::new(&points, &frame, product);
    // Where distances are so much alike that the first rows stay open, the others will: the attempt would be for nothing.
    let first: Vec<i64> = (0..n.min(BLOCK)).collect();
    let pays = || 2 * Candidates::of_rows(&cloud, Product::Half, &first, ks).open.len() < first.len();
    let product = if product == Product::Half && pays() { Product::Half } else { Product::Single };
    let Candidates { mut radii, mut open } = Candidates::of_all(&cloud, product, ks);
    if product == Product::Half && !open.is_empty() {
        let rows: Vec<i64> = open.iter().map(|&row| row as i64).collect();
        let some = Candidates::of_rows(&cloud, Product::Single, &rows, ks);
        for (all, some) in radii.iter_mut().zip(&some.radii) {
            open.iter().zip(some).for_each(|(&row, &radius)| all[row] = radius);
        }
        open = some.open.into_iter().map(|at| open[at]).collect();
    }
    for row in open {
        let distances = full_row(&cloud, row);
        ks.iter().zip(&mut radii).for_each(|(&k, radii)| radii[row] = distances[k - 1]);
    }
    Ok(Tensor::from_slice(&radii.concat()).view([ks.len() as i64, n]).to_device(device))
}

/// Squared distances of a row to all others, by differences, rising.
fn full_row(cloud: &Cloud, row: usize) -> Vec<f64> {
    let others = (0..cloud.len() as usize).filter(|&other| other != row);
    let mut distances: Vec<f64> = others.map(|other| cloud.exact(row, cloud, other)).collect();
    distances.sort_by(f64::total_cmp);
    distances
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
