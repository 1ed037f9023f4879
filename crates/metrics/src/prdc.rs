//! Precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020), as the package `prdc` 0.2.
//!
//! Euclidean distance; a ball around a point ends at its k-th nearest other point of the same set; inside means
//! strictly nearer.

use equipoise_base::Result;
use equipoise_numerics::knn;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The four measures for one k.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prdc {
    /// Neighbours that set the radius of a ball; 5 is customary.
    pub k: usize,
    /// Fraction of synthetic images inside the ball of some real one.
    pub precision: f64,
    /// Fraction of real images inside the ball of some synthetic one.
    pub recall: f64,
    /// Mean number of real balls around a synthetic image, over k; above 1 where synthetic images crowd.
    pub density: f64,
    /// Fraction of real images with a synthetic one inside their ball.
    pub coverage: f64,
}

impl Prdc {
    /// The measures of `fake` [m, d] against `real` [n, d] for each k of `ks`, in one pass over the distances.
    ///
    /// # Errors
    /// 65 unless both are finite and of one dimension; 78 when a set has no more than k images or k is 0.
    pub fn of(real: &Tensor, fake: &Tensor, ks: &[usize]) -> Result<Vec<Self>> {
        let real_radii = knn::squared_radii(real, ks).map_err(|error| error.context("real images"))?;
        let fake_radii = knn::squared_radii(fake, ks).map_err(|error| error.context("synthetic images"))?;
        let (real_balls, fake_balls) = knn::ball_counts(real, fake, &real_radii, &fake_radii)?;
        let row = |(at, &k): (usize, &usize)| {
            let hit = |counts: &Tensor| mean(&counts.get(at as i64).gt(0));
            Self {
                k,
                precision: hit(&real_balls.per_point),
                recall: hit(&fake_balls.per_point),
                density: mean(&real_balls.per_point.get(at as i64)) / k as f64,
                coverage: hit(&real_balls.per_centre),
            }
        };
        Ok(ks.iter().enumerate().map(row).collect())
    }
}

fn mean(values: &Tensor) -> f64 {
    values.mean(Kind::Double).double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[f64]) -> Tensor {
        Tensor::from_slice(points).unsqueeze(1)
    }

    #[test]
    fn points_on_a_line() -> Result<()> {
        // Radii at k = 1: real 1, 1, 2; synthetic 0.25, 0.25, 97.25.
        let (real, fake) = (line(&[0., 1., 3.]), line(&[0.5, 0.75, 98.]));
        let got = Prdc::of(&real, &fake, &[1])?[0];
        // Real balls (-1, 1), (0, 2), (1, 5): two synthetic points in two of them, one in none;
        // the ball around 98 holds the real points 1 and 3, at 97 and 95.
        let want = Prdc { k: 1, precision: 2. / 3., recall: 2. / 3., density: 4. / 3., coverage: 2. / 3. };
        assert!((got.density - want.density).abs() < 1e-15);
        assert_eq!(Prdc { density: want.density, ..got }, want);
        Ok(())
    }

    #[test]
    fn collapse_and_identity() -> Result<()> {
        let real = line(&[0., 1., 2.5, 4.5, 8.5]);
        let same = Prdc::of(&real, &real, &[2])?[0];
        // The second neighbour is exactly at the radius, so each ball holds its centre and one neighbour.
        assert_eq!((same.precision, same.recall, same.coverage, same.density), (1., 1., 1., 1.));
        let collapsed = Prdc::of(&real, &line(&[1.; 4]), &[2])?[0];
        // Synthetic balls have radius 0 and hold nothing, not even their own centre.
        assert_eq!((collapsed.recall, collapsed.precision), (0., 1.));
        Ok(())
    }

    #[test]
    fn too_few_images_name_their_side() {
        let error = Prdc::of(&line(&[0., 1., 2.]), &line(&[0., 1.]), &[2]).unwrap_err();
        assert!(error.message().starts_with("synthetic images"), "{error}");
    }
}
