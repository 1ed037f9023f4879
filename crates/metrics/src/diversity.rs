//! Diversity of the images of one class (seed paper 000, Eq. 3-5).

use equipoise_base::{Result, ensure};
use equipoise_numerics::{check, linalg};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Three measures of spread, from the features of one class.
///
/// In cosine and singular values the features are L2-normalised; a zero row stays zero.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diversity {
    /// Number of images.
    pub images: u64,
    /// Eq. 3: root of the mean of (1 - cosine to the normalised mean) / 2; in [0, 1].
    pub div_cos: f64,
    /// Eq. 4: root of the mean squared distance to the mean, raw features.
    pub div_std: f64,
    /// Eq. 5: `1 - sigma1 / sqrt(n)`; the division puts sigma1 in [0, 1] as the paper says it is.
    pub div_svd: f64,
    /// Largest singular value of the n x d matrix of normalised features, in [1, sqrt(n)].
    pub sigma1: f64,
    /// `1 - sigma1 / (sum of singular values)`, the other reading of Eq. 5.
    pub div_svd_sum: f64,
}

impl Diversity {
    /// Measures `features` [n, d] of one class.
    ///
    /// # Errors
    /// 65 unless they are finite and at least one.
    pub fn of(features: &Tensor) -> Result<Self> {
        let (images, _) = check::features("diversity", features)?;
        ensure!(images > 0, BadData, "diversity of a class without images");
        let raw = features.to_kind(Kind::Double);
        let unit = normalize(&raw);
        let centre = normalize(&unit.mean_dim(0, true, Kind::Double));
        let cosine = (&unit * centre).sum_dim_intlist(1, false, Kind::Double);
        let squares =
            (&raw - raw.mean_dim(0, true, Kind::Double)).square().sum_dim_intlist(1, false, Kind::Double);
        let sigma = check::to_f64(&linalg::singular_values(&unit)?);
        let (sigma1, sum) = (sigma.first().copied().unwrap_or(0.), sigma.iter().sum::<f64>());
        Ok(Self {
            images: images as u64,
            // Round-off can push a cosine above 1.
            div_cos: (mean(&(1. - cosine)) / 2.).max(0.).sqrt(),
            div_std: mean(&squares).sqrt(),
            div_svd: 1. - sigma1 / (images as f64).sqrt(),
            sigma1,
            div_svd_sum: if sum > 0. { 1. - sigma1 / sum } else { 0. },
        })
    }
}

/// Rows of norm 1; zero rows stay zero.
fn normalize(rows: &Tensor) -> Tensor {
    rows / rows.norm_scalaropt_dim(2, [1], true).clamp_min(1e-12)
}

fn mean(values: &Tensor) -> f64 {
    values.mean(Kind::Double).double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).view([-1, 2])
    }

    #[test]
    fn orthogonal_directions_are_closed_form() -> Result<()> {
        let got = Diversity::of(&rows(&[3., 0., 0., 4.]))?;
        assert!((got.div_cos - ((1. - 0.5f64.sqrt()) / 2.).sqrt()).abs() < 1e-15);
        assert!((got.div_std - 2.5).abs() < 1e-15);
        assert!((got.sigma1 - 1.).abs() < 1e-15 && (got.div_svd_sum - 0.5).abs() < 1e-15);
        assert!((got.div_svd - (1. - 0.5f64.sqrt())).abs() < 1e-15);
        Ok(())
    }

    #[test]
    fn equal_images_have_none() -> Result<()> {
        for count in [1, 7] {
            let got = Diversity::of(&rows(&[0.1, 0.7]).repeat([count, 1]))?;
            let all = [got.div_cos, got.div_std, got.div_svd, got.div_svd_sum];
            assert!(all.iter().all(|value| value.abs() < 1e-7), "{got:?}");
        }
        Ok(())
    }

    #[test]
    fn degenerate_features_stay_finite() -> Result<()> {
        for degenerate in [[0., 0., 0., 0.], [1., 0., -1., 0.], [0., 0., 1., 2.]] {
            let got = Diversity::of(&rows(&degenerate))?;
            let all = [got.div_cos, got.div_std, got.div_svd, got.sigma1, got.div_svd_sum];
            assert!(all.iter().all(|value| value.is_finite()), "{got:?}");
        }
        assert!(Diversity::of(&rows(&[])).is_err());
        Ok(())
    }
}
