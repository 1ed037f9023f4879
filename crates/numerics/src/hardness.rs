//! The hardness score: how untypical a feature is of its class (seed paper 002, Eq. 5).

use crate::{check, linalg, stats::ClassMoments};
use equipoise_base::{Result, ensure};
use tch::{Device, Kind, Tensor};

/// Gaussian models of the classes, ready to score features.
///
/// `0.5 [(q - mu_y)^T P_y (q - mu_y) + ln det S_y + d ln 2 pi]` with `S_y = cov_y + eps I` and `P_y` its inverse;
/// one common `S` if the statistics are pooled. Without shrinkage a class with fewer rows than features has none.
#[derive(Debug)]
pub struct Hardness {
    mean: Tensor,
    precision: Tensor,
    logdet: Tensor,
}

impl Hardness {
    /// Shrinks and inverts the covariances of `stats`.
    ///
    /// # Errors
    /// 78 when `eps` is negative; 71 when a covariance stays singular.
    pub fn new(stats: &ClassMoments, eps: f64) -> Result<Self> {
        let covariances: Vec<Tensor> = (0..stats.slots()).map(|slot| stats.covariance(slot)).collect();
        ensure!(!covariances.is_empty(), BadData, "hardness: there are no classes");
        Self::of_covariances(stats.mean(), &Tensor::stack(&covariances, 0), eps)
    }

    /// From means [C, d] and covariances [C, d, d], or [1, d, d] when pooled, all in float64.
    ///
    /// # Errors
    /// As [`Hardness::new`]; 65 when the shapes do not fit.
    pub fn of_covariances(mean: &Tensor, covariances: &Tensor, eps: f64) -> Result<Self> {
        let (rows, matrices) = (mean.size(), covariances.size());
        let fits = matches!((&rows[..], &matrices[..]), ([c, d], [k, a, b])
            if d == a && a == b && *c > 0 && (k == c || *k == 1));
        ensure!(fits, BadData, "hardness: means of shape {rows:?} with covariances of shape {matrices:?}");
        ensure!(
            eps >= 0. && eps.is_finite(),
            Config,
            "hardness: the shrinkage eps is {eps}, it must not be negative"
        );
        let ridge = Tensor::eye(rows[1], (Kind::Double, mean.device())) * eps;
        let (mut precision, mut logdet) = (Vec::new(), Vec::new());
        for slot in 0..matrices[0] {
            let shrunk = covariances.get(slot) + &ridge;
            let (inverse, log) = linalg::inverse_logdet(&shrunk, &format!("covariance {slot}"))?;
            precision.push(inverse);
            logdet.push(log);
        }
        let logdet = Tensor::from_slice(&logdet).to_device(mean.device());
        Ok(Self { mean: mean.copy(), precision: Tensor::stack(&precision, 0), logdet })
    }

    /// The same on another device in another precision, as guidance of a network needs it.
    #[must_use]
    pub fn to(&self, kind: Kind, device: Device) -> Self {
        let to = |tensor: &Tensor| tensor.to_device(device).to_kind(kind);
        Self { mean: to(&self.mean), precision: to(&self.precision), logdet: to(&self.logdet) }
    }

    /// Class means [C, d].
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// Inverse shrunk covariances [C, d, d], or [1, d, d] when pooled.
    pub fn precision(&self) -> &Tensor {
        &self.precision
    }

    /// Log-determinants of the shrunk covariances [C], or [1] when pooled.
    pub fn logdet(&self) -> &Tensor {
        &self.logdet
    }

    /// Scores [m] of `features` [m, d] as members of the classes `labels` [m]; differentiable in `features`.
    ///
    /// # Errors
    /// 65 when shapes do not fit or a label is out of range.
    pub fn value(&self, features: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (centred, whitened) = self.whiten(features, labels)?;
        let distance = (centred * whitened).sum_dim_intlist(1, false, features.kind());
        let constant = self.mean.size()[1] as f64 * std::f64::consts::TAU.ln();
        let logdet =
            if self.pooled() { self.logdet.shallow_clone() } else { self.logdet.index_select(0, labels) };
        Ok((distance + logdet + constant) * 0.5)
    }

    /// Gradient [m, d] of the scores with respect to `features` [m, d]: `P_y (q - mu_y)`.
    ///
    /// # Errors
    /// 65 when shapes do not fit or a label is out of range.
    pub fn gradient(&self, features: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(self.whiten(&features.detach(), labels)?.1)
    }

    fn pooled(&self) -> bool {
        self.precision.size()[0] == 1
    }

    /// `q - mu_y` and `P_y (q - mu_y)`, both [m, d].
    fn whiten(&self, features: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
        let (have, dim) = (features.size(), self.mean.size()[1]);
        let fits = have.len() == 2 && have[1] == dim;
        ensure!(
            fits,
            BadData,
            "hardness: features have shape {have:?}, the statistics are of dimension {dim}"
        );
        let host = check::labels("hardness", labels, have[0], self.mean.size()[0] as usize)?;
        let centred = features - self.mean.index_select(0, labels);
        if self.pooled() {
            let whitened = centred.matmul(&self.precision.get(0));
            return Ok((centred, whitened));
        }
        // One product per class, not per row: a row of its own precision matrix would need m d^2 memory.
        let mut order: Vec<usize> = (0..host.len()).collect();
        order.sort_by_key(|&row| host[row]);
        let mut parts = Vec::new();
        for rows in order.chunk_by(|&a, &b| host[a] == host[b]) {
            let class = host[rows[0]] as i64;
            parts.push(centred.index_select(0, &index(rows, labels)).matmul(&self.precision.get(class)));
        }
        let mut back = vec![0; order.len()];
        for (position, &row) in order.iter().enumerate() {
            back[row] = position;
        }
        let whitened = match parts.is_empty() {
            true => centred.shallow_clone(),
            false => Tensor::cat(&parts, 0).index_select(0, &index(&back, labels)),
        };
        Ok((centred, whitened))
    }
}

fn index(rows: &[usize], like: &Tensor) -> Tensor {
    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    Tensor::from_slice(&rows).to_device(like.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Spread;

    fn stats(spread: Spread) -> Result<ClassMoments> {
        let rows = Tensor::from_slice(&[0., 0., 2., 0., 0., 4., 2., 4., 9., 9.]).view([5, 2]);
        let mut stats = ClassMoments::new(3, 2, spread, Device::Cpu);
        stats.update(&rows, &Tensor::from_slice(&[0i64, 0, 0, 0, 2]))?;
        Ok(stats)
    }

    #[test]
    fn closed_form_of_a_diagonal_covariance() -> Result<()> {
        // Class 0 is centred at (1, 2) with variances 4/3 and 16/3.
        let hardness = Hardness::new(&stats(Spread::PerClass)?, 1.)?;
        let (a, b) = (4. / 3. + 1., 16. / 3. + 1.);
        let query = Tensor::from_slice(&[2., 5.]).view([1, 2]);
        let class = Tensor::from_slice(&[0i64]);
        let value = hardness.value(&query, &class)?.double_value(&[0]);
        let want = 0.5 * (1. / a + 9. / b + f64::ln(a * b) + 2. * std::f64::consts::TAU.ln());
        assert!((value - want).abs() < 1e-12, "{value} {want}");
        let gradient = check::to_f64(&hardness.gradient(&query, &class)?);
        assert!((gradient[0] - 1. / a).abs() < 1e-12 && (gradient[1] - 3. / b).abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn autograd_agrees_with_the_gradient() -> Result<()> {
        for spread in [Spread::PerClass, Spread::Pooled] {
            let hardness = Hardness::new(&stats(spread)?, 0.3)?;
            let query = Tensor::from_slice(&[1., -2., 0.5, 3., 7., 8.]).view([3, 2]).set_requires_grad(true);
            let classes = Tensor::from_slice(&[2i64, 0, 1]);
            hardness.value(&query, &classes)?.sum(Kind::Double).backward();
            let error = (query.grad() - hardness.gradient(&query, &classes)?).abs().max().double_value(&[]);
            assert!(error < 1e-13, "{error:e}");
        }
        Ok(())
    }

    #[test]
    fn a_singular_covariance_without_shrinkage_is_an_error() -> Result<()> {
        let error = Hardness::new(&stats(Spread::PerClass)?, 0.).unwrap_err();
        assert!(error.message().contains("eps"), "{error}");
        assert!(Hardness::new(&stats(Spread::PerClass)?, -1.).is_err());
        assert!(Hardness::new(&stats(Spread::Pooled)?, 0.).is_ok());
        Ok(())
    }
}
