//! Mixing of pairs: mixup (Zhang et al. 2018) and Remix (Chou et al. 2020).

use equipoise_base::rng::Stream;
use tch::{Kind, Tensor};

/// `lambda x + (1 - lambda) x[perm]` for `x` [N, ..] and `perm` [N] int64.
pub fn mix_images(x: &Tensor, perm: &Tensor, lambda: f64) -> Tensor {
    x * lambda + x.index_select(0, perm) * (1. - lambda)
}

/// Share [N] of the own label in mixup: `lambda` for all, in the kind of `like`.
pub fn mixup_shares(target: &Tensor, lambda: f64, like: &Tensor) -> Tensor {
    Tensor::full(target.size(), lambda, (like.kind(), like.device()))
}

/// The rule by which Remix gives a mixed image to the rarer class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Remix {
    /// Imbalance of the pair from which the rule applies; the paper has 3.
    pub kappa: f64,
    /// The majority may make up no less than 1 - tau of the image; the paper has 0.5.
    pub tau: f64,
}

impl Remix {
    /// Share of the own label when an image of a class with `own` training images is mixed, by `lambda`, with one of
    /// a class with `other`.
    pub fn share(&self, own: u64, other: u64, lambda: f64) -> f64 {
        // Products instead of the quotient n_i / n_j, so that a class without images needs no exception.
        let (own, other) = (own as f64, other as f64);
        if own >= self.kappa * other && lambda < self.tau {
            0.
        } else if own * self.kappa <= other && 1. - lambda < self.tau {
            1.
        } else {
            lambda
        }
    }

    /// Shares [N] of the own labels, for `target` and its partners under `perm`, both on the host.
    pub fn shares(&self, counts: &[u64], target: &[usize], perm: &[usize], lambda: f64) -> Vec<f64> {
        let count = |position: usize| counts[target[position]];
        perm.iter().enumerate().map(|(own, &other)| self.share(count(own), count(other), lambda)).collect()
    }
}

/// Targets [N, C] of mixed images: `share` [N] of the own label, the rest of the partner's.
pub fn soft_targets(target: &Tensor, perm: &Tensor, share: &Tensor, classes: i64) -> Tensor {
    let share = share.unsqueeze(1);
    let hot = |target: &Tensor| target.one_hot(classes).to_kind(share.kind());
    &share * hot(target) + (1. - &share) * hot(&target.index_select(0, perm))
}

/// Mean cross-entropy of `logits` [N, C] for soft targets [N, C].
pub fn soft_cross_entropy(logits: &Tensor, soft: &Tensor) -> Tensor {
    let losses = -(logits.log_softmax(1, None::<Kind>) * soft).sum_dim_intlist(1, false, None::<Kind>);
    losses.mean(None::<Kind>)
}

/// Draws lambda from Beta(alpha, alpha) by Jöhnk's method; 1 (no mixing) for alpha 0.
///
/// # Panics
/// If `alpha` is negative or not finite: the configuration is checked before.
pub fn draw_lambda(random: &mut Stream, alpha: f64) -> f64 {
    assert!(alpha >= 0. && alpha.is_finite(), "Beta({alpha}, {alpha})");
    if alpha == 0. {
        return 1.;
    }
    loop {
        // In logarithms, because u^(1/alpha) underflows for small alpha; 1 - uniform is never 0.
        let x = libm::log(1. - random.uniform()) / alpha;
        let y = libm::log(1. - random.uniform()) / alpha;
        let largest = x.max(y);
        let sum = largest + libm::log(libm::exp(x - largest) + libm::exp(y - largest));
        if sum <= 0. {
            return libm::exp(x - sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::cross_entropy;
    use equipoise_base::rng::Key;

    #[test]
    fn remix_favours_the_rarer_class_of_an_unequal_pair() {
        let remix = Remix { kappa: 3., tau: 0.5 };
        assert_eq!(remix.share(300, 100, 0.4), 0.);
        assert_eq!(remix.share(300, 100, 0.5), 0.5);
        assert_eq!(remix.share(100, 300, 0.6), 1.);
        assert_eq!(remix.share(100, 300, 0.5), 0.5);
        assert_eq!(remix.share(299, 100, 0.4), 0.4);
        assert_eq!(remix.shares(&[300, 100], &[0, 1], &[1, 0], 0.4), [0., 0.4]);
    }

    #[test]
    fn soft_targets_are_two_weighted_losses() {
        let logits = Tensor::from_slice(&[1., 2., 0., -1., 0.5, 3.]).view([2, 3]);
        let (target, perm) = (Tensor::from_slice(&[0i64, 2]), Tensor::from_slice(&[1i64, 0]));
        let soft = soft_targets(&target, &perm, &mixup_shares(&target, 0.3, &logits), 3);
        let own = cross_entropy(&logits, &target);
        let other = cross_entropy(&logits, &target.index_select(0, &perm));
        let error = soft_cross_entropy(&logits, &soft) - (own * 0.3 + other * 0.7);
        assert!(error.double_value(&[]).abs() < 1e-15);
    }

    #[test]
    fn images_are_mixed_and_lambda_one_changes_nothing() {
        let x = Tensor::from_slice(&[1., 3.]).view([2, 1]);
        let perm = Tensor::from_slice(&[1i64, 0]);
        assert_eq!(mix_images(&x, &perm, 0.25).double_value(&[0, 0]), 2.5);
        assert!(mix_images(&x, &perm, 1.).eq_tensor(&x).all().int64_value(&[]) == 1);
    }

    #[test]
    fn lambda_has_the_moments_of_its_beta() {
        for alpha in [0.01f64, 0.2, 1., 2.] {
            let mut random = Key::new(3, "beta").stream();
            let draws: Vec<f64> = (0..20_000).map(|_| draw_lambda(&mut random, alpha)).collect();
            let mean = draws.iter().sum::<f64>() / 2e4;
            let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / 2e4;
            assert!((mean - 0.5).abs() < 0.015, "{alpha}: {mean}");
            assert!((variance - 0.25 / (2. * alpha + 1.)).abs() < 0.005, "{alpha}: {variance}");
            assert!(draws.iter().all(|draw| (0. ..=1.).contains(draw)));
        }
        assert_eq!(draw_lambda(&mut Key::new(0, "beta").stream(), 0.), 1.);
    }
}
