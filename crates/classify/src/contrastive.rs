//! Contrastive losses over two views of a batch: SupCon, PaCo and BCL.
//!
//! `features` are [N, 2, D] of unit norm, `target` [N] int64; columns are ordered by view: all first views, then all
//! second ones. Every loss is a 0-d tensor, differentiable in all float inputs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Supervised contrastive loss (Khosla et al. 2020).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SupCon {
    /// Temperature.
    pub temperature: f64,
    /// The loss is scaled by temperature / base_temperature.
    pub base_temperature: f64,
}

impl SupCon {
    /// Mean over both views of `-(T / base_T) mean_p log (exp(z_a z_p / T) / sum_{j != a} exp(z_a z_j / T))`.
    pub fn forward(&self, features: &Tensor, target: &Tensor) -> Tensor {
        let rows = by_view(features);
        let labels = target.repeat([2]);
        let itself = diagonal(rows.size()[0], rows.size()[0], rows.device());
        let logits = rows.matmul(&rows.tr()) / self.temperature;
        let others = logits.masked_fill(&itself, f64::NEG_INFINITY).logsumexp(1, true);
        let positive = same_class(&labels, &labels).logical_and(&itself.logical_not()).to_kind(rows.kind());
        mean_over(&positive, &(logits - others)).mean(None::<Kind>)
            * (-self.temperature / self.base_temperature)
    }
}

/// Parametric contrastive learning (Cui et al. 2021): learnable class centres join the columns as logits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PaCo {
    /// Weight of a sample of the same class.
    pub alpha: f64,
    /// Weight of the class's own centre.
    pub beta: f64,
    /// Weight of the samples in the denominator.
    pub gamma: f64,
    /// Temperature of the class logits.
    pub supt: f64,
    /// Temperature of the samples.
    pub temperature: f64,
    /// The loss is scaled by temperature / base_temperature.
    pub base_temperature: f64,
}

/// Features of earlier batches and their labels.
#[derive(Debug)]
pub struct Queue<'a> {
    /// Features [Q, D].
    pub features: &'a Tensor,
    /// Labels [Q] int64.
    pub target: &'a Tensor,
}

impl PaCo {
    /// Loss of the first views as anchors, for class logits `sup_logits` [N, C], class shares `prior` [C] (summing
    /// to 1) and a queue.
    pub fn forward(
        &self,
        features: &Tensor,
        target: &Tensor,
        sup: (&Tensor, &Tensor),
        queue: &Queue,
    ) -> Tensor {
        let (sup_logits, prior) = sup;
        let (n, classes) = (target.size()[0], sup_logits.size()[1]);
        let columns = Tensor::cat(&[&by_view(features), queue.features], 0);
        let labels = Tensor::cat(&[target, target, queue.target], 0);
        let samples = features.select(1, 0).matmul(&columns.tr()) / self.temperature;
        let class_logits = (sup_logits + (prior + 1e-9).log()) / self.supt;
        let all = Tensor::cat(&[class_logits, samples], 1);
        let logits = &all - all.amax(1, true).detach();

        let not_itself = diagonal(n, columns.size()[0], features.device()).logical_not().to_kind(all.kind());
        let own_class = target.one_hot(classes).to_kind(all.kind());
        let positive = same_class(target, &labels).to_kind(all.kind()) * &not_itself;
        let positive = Tensor::cat(&[own_class.shallow_clone() * self.beta, positive * self.alpha], 1);
        let counted = Tensor::cat(&[own_class.ones_like(), not_itself * self.gamma], 1);
        let denominator = (logits.exp() * counted).sum_dim_intlist(1, true, None::<Kind>);
        // The authors add 1e-12 after the maximum is subtracted.
        let log_p = logits - (denominator + 1e-12).log();
        mean_over(&positive, &log_p).mean(None::<Kind>) * (-self.temperature / self.base_temperature)
    }
}

/// Balanced contrastive learning (Zhu et al. 2022): classes weigh the same in the denominator, and every class is
/// there through its centre.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bcl {
    /// Temperature.
    pub temperature: f64,
}

impl Bcl {
    /// Loss of both views as anchors, with class `centers` [C, D] of unit norm.
    pub fn forward(&self, features: &Tensor, target: &Tensor, centers: &Tensor) -> Tensor {
        let (rows, classes) = (by_view(features), centers.size()[0]);
        let columns = Tensor::cat(&[&rows, centers], 0);
        let anchors = target.repeat([2]);
        let labels = Tensor::cat(&[&anchors, &Tensor::arange(classes, (Kind::Int64, target.device()))], 0);
        let itself = diagonal(rows.size()[0], columns.size()[0], rows.device());
        let logits = rows.matmul(&columns.tr()) / self.temperature;
        let positive = same_class(&anchors, &labels).logical_and(&itself.logical_not()).to_kind(rows.kind());
        // Columns of a class, less the anchor where it is of that class itself: at least 1, the centre.
        let members = labels.bincount(None::<Tensor>, classes).index_select(0, &labels).to_kind(rows.kind());
        let weighted = &logits - (members - &positive).log();
        let denominator = weighted.masked_fill(&itself, f64::NEG_INFINITY).logsumexp(1, true);
        -mean_over(&positive, &(logits - denominator)).mean(None::<Kind>)
    }
}

/// [N, 2, D] to [2N, D], all first views first.
fn by_view(features: &Tensor) -> Tensor {
    features.transpose(0, 1).flatten(0, 1)
}

/// Whether row and column are of one class: [rows, columns] bool.
fn same_class(rows: &Tensor, columns: &Tensor) -> Tensor {
    rows.unsqueeze(1).eq_tensor(&columns.unsqueeze(0))
}

/// Where a row meets itself among the columns: [rows, columns] bool.
fn diagonal(rows: i64, columns: i64, device: Device) -> Tensor {
    let count = |n| Tensor::arange(n, (Kind::Int64, device));
    same_class(&count(rows), &count(columns))
}

/// Weighted mean along each row: [rows].
fn mean_over(weight: &Tensor, values: &Tensor) -> Tensor {
    let sum = |tensor: &Tensor| tensor.sum_dim_intlist(1, false, None::<Kind>);
    sum(&(weight * values)) / sum(weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::cross_entropy;

    fn unit(values: &[f64], shape: &[i64]) -> Tensor {
        Tensor::from_slice(values).view(shape)
    }

    #[test]
    fn supcon_of_two_orthogonal_classes_is_closed_form() {
        // Views agree, classes are orthogonal: each anchor sees 1 once and 0 twice.
        let features = unit(&[1., 0., 1., 0., 0., 1., 0., 1.], &[2, 2, 2]);
        let loss = SupCon { temperature: 0.5, base_temperature: 1. };
        let got = loss.forward(&features, &Tensor::from_slice(&[0i64, 1])).double_value(&[]);
        let e = 2f64.exp();
        assert!((got - 0.5 * ((e + 2.) / e).ln()).abs() < 1e-14, "{got}");
    }

    #[test]
    fn bcl_counts_a_class_once() {
        // The same anchors with a class that is there four times: its columns are averaged.
        let target = Tensor::from_slice(&[0i64, 1, 1]);
        let features = unit(&[1., 0., 1., 0., 0., 1., 0., 1., 0., 1., 0., 1.], &[3, 2, 2]);
        let centers = unit(&[1., 0., 0., 1.], &[2, 2]);
        let got = Bcl { temperature: 1. }.forward(&features, &target, &centers).double_value(&[]);
        let e = 1f64.exp();
        assert!((got - ((e + 1.) / e).ln()).abs() < 1e-14, "{got}");
    }

    #[test]
    fn paco_without_samples_is_logit_adjusted_cross_entropy() {
        let (target, features) = (Tensor::from_slice(&[1i64]), unit(&[1., 0., 0., 1.], &[1, 2, 2]));
        let queue = Queue { features: &unit(&[], &[0, 2]), target: &Tensor::from_slice::<i64>(&[]) };
        let (logits, prior) = (unit(&[0.3, -1.], &[1, 2]), unit(&[0.75, 0.25], &[2]));
        let loss = PaCo { alpha: 0., beta: 1., gamma: 0., supt: 1., temperature: 0.2, base_temperature: 0.2 };
        let got = loss.forward(&features, &target, (&logits, &prior), &queue).double_value(&[]);
        let want = cross_entropy(&(&logits + prior.log()), &target).double_value(&[]);
        assert!((got - want).abs() < 1e-8, "{got} {want}");
    }
}
