//! Fréchet distance of two Gaussians fitted to features (Heusel et al. 2017).
//!
//! `||mu1 - mu2||^2 + Tr S1 + Tr S2 - 2 Tr (S1 S2)^(1/2)` with n - 1 covariances. The last trace is the nuclear norm
//! of a cross product of factors of S1 and S2. It agrees with pytorch-fid's root of the product to round-off where
//! that is sound, and is exact for singular covariances (fewer images than features), where that is off by 1e-6.

use equipoise_base::{Result, ensure};
use equipoise_numerics::{Moments, check, linalg};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// A Fréchet distance and its parts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fid {
    /// The distance: `mean + covariance`.
    pub value: f64,
    /// Squared distance of the means.
    pub mean: f64,
    /// What the covariances contribute; never below 0 but for round-off.
    pub covariance: f64,
}

impl Fid {
    /// Distance of two sets of feature rows, `real` [n, d] and `fake` [m, d].
    ///
    /// # Errors
    /// 65 unless both are finite, of one dimension and of at least two rows.
    pub fn of_features(real: &Tensor, fake: &Tensor) -> Result<Self> {
        let (a, b) = (Moments::of(real)?, Moments::of(fake)?);
        Self::from_factors((&a, factor(&a, Some(real))?), (&b, factor(&b, Some(fake))?))
    }

    /// Distance of two streamed sets.
    ///
    /// # Errors
    /// 65 unless both are of one dimension and of at least two rows.
    pub fn of_moments(real: &Moments, fake: &Moments) -> Result<Self> {
        Self::from_factors((real, factor(real, None)?), (fake, factor(fake, None)?))
    }

    /// Distance of stored Gaussians: means [d] and covariances [d, d], such as published statistics of a data set.
    ///
    /// # Errors
    /// 65 when shapes do not fit, 71 when a value is not finite.
    pub fn of_gaussians(real: (&Tensor, &Tensor), fake: (&Tensor, &Tensor)) -> Result<Self> {
        let dim = real.0.numel() as i64;
        for (mean, covariance) in [real, fake] {
            let sizes = (mean.size(), covariance.size());
            ensure!(
                sizes == (vec![dim], vec![dim, dim]),
                BadData,
                "FID: mean and covariance of shapes {sizes:?}"
            );
        }
        let trace = linalg::trace_sqrt_product(&linalg::psd_factor(real.1)?, &linalg::psd_factor(fake.1)?)?;
        Ok(Self::assemble(real, fake, trace))
    }

    fn from_factors(real: (&Moments, Tensor), fake: (&Moments, Tensor)) -> Result<Self> {
        let (have, got) = (real.0.dim(), fake.0.dim());
        ensure!(have == got, BadData, "FID: {have} features per real image, {got} per synthetic one");
        let trace = linalg::trace_sqrt_product(&real.1, &fake.1)?;
        let (a, b) = (real.0.covariance(), fake.0.covariance());
        Ok(Self::assemble((real.0.mean(), &a), (fake.0.mean(), &b), trace))
    }

    fn assemble(real: (&Tensor, &Tensor), fake: (&Tensor, &Tensor), root_trace: f64) -> Self {
        let trace = |matrix: &Tensor| matrix.to_kind(Kind::Double).trace().double_value(&[]);
        let shift = real.0.to_kind(Kind::Double) - fake.0.to_kind(Kind::Double);
        let mean = shift.square().sum(Kind::Double).double_value(&[]);
        let covariance = trace(real.1) + trace(fake.1) - 2. * root_trace;
        Self { value: mean + covariance, mean, covariance }
    }
}

/// F with `F^T F` = covariance: the centred rows themselves where they are fewer than the features.
fn factor(moments: &Moments, rows: Option<&Tensor>) -> Result<Tensor> {
    let (n, dim) = (moments.count(), moments.dim());
    ensure!(n >= 2, BadData, "FID needs at least two images on each side, one has {n}");
    match rows {
        Some(rows) if (n as i64) <= dim => {
            check::features("FID", rows)?;
            Ok((rows.to_kind(Kind::Double) - moments.mean()) / ((n - 1) as f64).sqrt())
        }
        _ => linalg::psd_factor(&moments.covariance()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::rng::Key;

    fn normal(seed: u64, rows: i64, dim: i64) -> Tensor {
        let mut random = Key::new(seed, "fid-test").stream();
        let values: Vec<f64> = (0..rows * dim).map(|_| random.normal()).collect();
        Tensor::from_slice(&values).view([rows, dim])
    }

    #[test]
    fn one_dimension_is_closed_form() -> Result<()> {
        let column = |values: &[f64]| Tensor::from_slice(values).unsqueeze(1);
        let fid = Fid::of_features(&column(&[0., 2.]), &column(&[3., 9.]))?;
        // (mu1 - mu2)^2 + (sigma1 - sigma2)^2 with mu 1 and 6, sigma sqrt 2 and sqrt 18.
        assert!((fid.mean - 25.).abs() < 1e-12 && (fid.covariance - 8.).abs() < 1e-12, "{fid:?}");
        Ok(())
    }

    #[test]
    fn equal_sets_are_at_distance_zero_even_when_singular() -> Result<()> {
        for (rows, dim) in [(50, 6), (4, 12), (2, 3)] {
            let set = normal(1, rows, dim);
            assert!(Fid::of_features(&set, &set)?.value.abs() < 1e-12);
            assert!(Fid::of_moments(&Moments::of(&set)?, &Moments::of(&set)?)?.value.abs() < 1e-12);
        }
        Ok(())
    }

    #[test]
    fn features_moments_and_gaussians_agree() -> Result<()> {
        for (n, m, dim) in [(60, 50, 8), (9, 7, 16), (60, 5, 16)] {
            let (real, fake) = (normal(2, n, dim), normal(3, m, dim) * 1.3 + 0.2);
            let (a, b) = (Moments::of(&real)?, Moments::of(&fake)?);
            let direct = Fid::of_features(&real, &fake)?.value;
            let streamed = Fid::of_moments(&a, &b)?.value;
            let stored = Fid::of_gaussians((a.mean(), &a.covariance()), (b.mean(), &b.covariance()))?.value;
            assert!(
                (direct - streamed).abs() < 1e-10 * direct && streamed == stored,
                "{direct} {streamed} {stored}"
            );
        }
        Ok(())
    }

    #[test]
    fn constant_features_are_allowed() -> Result<()> {
        let fid = Fid::of_features(&(normal(4, 5, 3) * 0. + 1.), &(normal(4, 6, 3) * 0.))?;
        assert_eq!(fid, Fid { value: 3., mean: 3., covariance: 0. });
        Ok(())
    }

    #[test]
    fn wrong_input_is_an_error() {
        let set = normal(5, 5, 3);
        assert!(Fid::of_features(&set, &normal(5, 5, 4)).is_err());
        assert!(Fid::of_features(&set, &normal(5, 1, 3)).is_err());
        assert!(Fid::of_features(&set, &(&set / 0.)).is_err());
        assert!(Fid::of_gaussians((&set, &set), (&set, &set)).is_err());
    }
}
