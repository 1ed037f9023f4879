//! Losses over groups and environments: GroupDRO and IRM, as SubpopBench has them.

use crate::losses;
use equipoise_base::{Result, ensure};
use tch::{Device, Kind, Tensor};

/// Distributionally robust optimisation over groups (Sagawa et al. 2020).
///
/// The group weights q are the state of a run: save and restore them with it.
#[derive(Debug)]
pub struct GroupDro {
    eta: f64,
    weights: Tensor,
}

impl GroupDro {
    /// Weights of 1 for each group, float64; `eta` is their step size (0.01).
    ///
    /// # Errors
    /// 78 when `eta` is negative.
    pub fn new(groups: i64, eta: f64, device: Device) -> Result<Self> {
        ensure!(eta >= 0. && eta.is_finite(), Config, "groupdro: eta is {eta}, it must not be negative");
        Ok(Self { eta, weights: Tensor::ones([groups], (Kind::Double, device)) })
    }

    /// Group weights [G]: ones at first, summing to 1 from the first batch on.
    pub fn weights(&self) -> &Tensor {
        &self.weights
    }

    /// Restores saved weights.
    ///
    /// # Errors
    /// 65 when there is not one weight per group.
    pub fn restore(&mut self, weights: &Tensor) -> Result<()> {
        let (have, want) = (weights.size(), self.weights.size());
        ensure!(have == want, BadData, "saved group weights have shape {have:?}, expected {want:?}");
        self.weights = weights.to_kind(Kind::Double).to_device(self.weights.device());
        Ok(())
    }

    /// Raises the weights of the groups in the batch by their losses, then gives the weighted sum of the group means
    /// (0-d) for `logits` [N, C], `target` [N] and `group` [N] int64. The weights are constant in the gradient.
    pub fn forward(&mut self, logits: &Tensor, target: &Tensor, group: &Tensor) -> Tensor {
        let (means, present) = means_by(&losses::per_sample(logits, target), group, self.weights.size()[0]);
        // The mean of an absent group is 0, and exp(0) leaves its weight as it is.
        let raised = &self.weights * (means.detach().to_kind(Kind::Double) * self.eta).exp();
        self.weights = &raised / raised.sum(Kind::Double);
        (means * present * self.weights.to_kind(logits.kind())).sum(None::<Kind>)
    }
}

/// Invariant risk minimisation (Arjovsky et al. 2019): value and penalty over environments.
#[derive(Debug)]
pub struct Irm {
    /// Mean over the environments of their mean cross-entropy.
    pub nll: Tensor,
    /// Mean over the environments of the product of two scale gradients, one over the even and one over the odd
    /// samples: an unbiased estimate of the squared gradient. An environment of one sample adds 0.
    pub penalty: Tensor,
    /// The original penalty: mean over the environments of the squared scale gradient of the whole environment.
    pub penalty_v1: Tensor,
}

impl Irm {
    /// Terms, all 0-d, of `logits` [N, C] for `target` [N] and the environments `env` [N] int64 of 0..`envs`.
    ///
    /// The loss is `nll + lambda penalty`; annealing lambda is up to the caller.
    pub fn of(logits: &Tensor, target: &Tensor, env: &Tensor, envs: i64) -> Self {
        let losses = losses::per_sample(logits, target);
        let slopes = scale_slopes(logits, target);
        let (nll, present) = means_by(&losses, env, envs);
        let count = present.sum(None::<Kind>);
        // Sub-environment 2e holds the samples of e at even positions, 2e + 1 those at odd ones.
        let member = env.one_hot(envs);
        let position = (member.cumsum(0, None::<Kind>) * &member).sum_dim_intlist(1, false, Kind::Int64) - 1;
        let (halves, _) = means_by(&slopes, &(env * 2 + position.remainder(2)), 2 * envs);
        let halves = halves.view([envs, 2]);
        let (whole, _) = means_by(&slopes, env, envs);
        Self {
            nll: nll.sum(None::<Kind>) / &count,
            penalty: (halves.select(1, 0) * halves.select(1, 1)).sum(None::<Kind>) / &count,
            penalty_v1: whole.square().sum(None::<Kind>) / count,
        }
    }
}

/// `d/dw CE(w logits)` at w = 1 for each sample [N], in closed form: the expected logit less the right one.
fn scale_slopes(logits: &Tensor, target: &Tensor) -> Tensor {
    let expected = (logits.softmax(1, None::<Kind>) * logits).sum_dim_intlist(1, false, None::<Kind>);
    expected - logits.gather(1, &target.unsqueeze(1), false).squeeze_dim(1)
}

/// Means [G] of `values` [N] by group, 0 for an absent one, and which groups are present [G], as 0 and 1.
fn means_by(values: &Tensor, group: &Tensor, groups: i64) -> (Tensor, Tensor) {
    let member = group.one_hot(groups).to_kind(values.kind());
    let count = member.sum_dim_intlist(0, false, None::<Kind>);
    let means = member.tr().matmul(values) / count.clamp_min(1.);
    (means, count.clamp_max(1.))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).view([-1, 2])
    }

    #[test]
    fn weights_follow_the_worst_group() -> Result<()> {
        let mut dro = GroupDro::new(3, 0.5, Device::Cpu)?;
        let logits = rows(&[0., 0., 4., 0.]).set_requires_grad(true);
        let (target, group) = (Tensor::from_slice(&[0i64, 0]), Tensor::from_slice(&[0i64, 1]));
        let value = dro.forward(&logits, &target, &group);
        let (a, b) = (2f64.ln(), (-4f64).exp().ln_1p());
        let sum = (0.5 * a).exp() + (0.5 * b).exp() + 1.;
        assert!((dro.weights().double_value(&[0]) - (0.5 * a).exp() / sum).abs() < 1e-14);
        assert!((dro.weights().double_value(&[2]) - 1. / sum).abs() < 1e-14);
        let want = ((0.5 * a).exp() * a + (0.5 * b).exp() * b) / sum;
        assert!((value.double_value(&[]) - want).abs() < 1e-14);
        value.backward();
        assert!(logits.grad().isfinite().all().int64_value(&[]) == 1);
        assert!(dro.restore(&Tensor::from_slice(&[1.])).is_err());
        Ok(())
    }

    #[test]
    fn the_slope_is_the_derivative_by_scale() {
        let (logits, target) = (rows(&[0.3, -1., 2., 0.5]), Tensor::from_slice(&[1i64, 0]));
        let loss = |scale: f64| losses::cross_entropy(&(&logits * scale), &target).double_value(&[]);
        let slope = scale_slopes(&logits, &target).mean(Kind::Double).double_value(&[]);
        assert!((slope - (loss(1. + 1e-6) - loss(1. - 1e-6)) / 2e-6).abs() < 1e-8);
    }

    #[test]
    fn single_samples_and_absent_environments_are_finite() {
        let (logits, target) = (rows(&[0.3, -1.]), Tensor::from_slice(&[1i64]));
        let irm = Irm::of(&logits, &target, &Tensor::from_slice(&[2i64]), 4);
        assert_eq!(irm.penalty.double_value(&[]), 0.);
        assert!(irm.penalty_v1.double_value(&[]) > 0. && irm.nll.double_value(&[]) > 0.);
    }
}
