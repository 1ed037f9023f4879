//! Kind `metrics`: FID, PRDC, diversity, accuracy by split and group, agreement of labels.

use crate::case::{Case, Tensors};
use equipoise_base::{Result, ensure};
use equipoise_metrics::{Confusion, Diversity, Fid, GroupAccuracy, Prdc, agreement, imbalance_std};
use equipoise_numerics::{Moments, check};
use tch::Tensor;

/// Computes the measure that `params.op` names.
pub fn check(case: &Case) -> Result<Tensors> {
    let op: String = case.param("op")?;
    match op.as_str() {
        "fid" => fid(case),
        "prdc" => prdc(case),
        "diversity" => diversity(case),
        "splits" => splits(case),
        "groups" => groups(case),
        "labels" => labels(case),
        "imbalance_std" => spread(case),
        _ => Err(case.broken(&format!("op '{op}' of kind metrics is unknown"))),
    }
}

fn fid(case: &Case) -> Result<Tensors> {
    let (real, fake) = (case.input("real")?, case.input("fake")?);
    let (a, b) = (Moments::of(real)?, Moments::of(fake)?);
    let value = Fid::of_features(real, fake)?.value;
    Ok(named([
        ("mu_real", a.mean().shallow_clone()),
        ("cov_real", a.covariance()),
        ("mu_fake", b.mean().shallow_clone()),
        ("cov_fake", b.covariance()),
        ("fid", scalar(value)),
        ("fid_sqrtm", scalar(value)),
    ]))
}

fn prdc(case: &Case) -> Result<Tensors> {
    let ks: Vec<usize> = case.param("k")?;
    let mut out = Tensors::new();
    for Prdc { k, precision, recall, density, coverage } in
        Prdc::of(case.input("real")?, case.input("fake")?, &ks)?
    {
        let values =
            [("precision", precision), ("recall", recall), ("density", density), ("coverage", coverage)];
        out.extend(values.map(|(name, value)| (format!("k{k}.{name}"), scalar(value))));
    }
    Ok(out)
}

fn diversity(case: &Case) -> Result<Tensors> {
    let got = Diversity::of(case.input("features")?)?;
    Ok(named([
        ("div_cos", scalar(got.div_cos)),
        ("div_std", scalar(got.div_std)),
        ("div_svd", scalar(got.div_svd)),
        ("sigma1", scalar(got.sigma1)),
        ("div_svd_sum", scalar(got.div_svd_sum)),
    ]))
}

fn splits(case: &Case) -> Result<Tensors> {
    let train_counts: Vec<u64> =
        integers(case, "train_counts")?.iter().map(|&count| count.max(0) as u64).collect();
    let got = Confusion::of_logits(case.input("logits")?, case.input("label")?)?.splits(&train_counts)?;
    let mut out = named([
        ("acc", scalar(got.accuracy)),
        ("per_class", or_absent(&got.per_class)),
        ("imbalance_std", scalar(got.imbalance_std)),
    ]);
    for (name, split) in [("many", got.many), ("medium", got.medium), ("few", got.few)] {
        out.insert(format!("{name}_macro"), scalar(split.macro_average));
        out.insert(format!("{name}_micro"), scalar(split.micro_average));
    }
    Ok(out)
}

fn groups(case: &Case) -> Result<Tensors> {
    let (pred, label, group) = (integers(case, "pred")?, integers(case, "label")?, integers(case, "group")?);
    let got = GroupAccuracy::of(case.param("num_groups")?, &pred, &label, &group)?;
    Ok(named([
        ("group_acc", or_absent(&got.groups)),
        ("worst", scalar(got.worst.unwrap_or(-1.))),
        ("worst_index", Tensor::from_slice(&[got.worst_group.map_or(-1, |group| group as i64)])),
        ("avg", scalar(got.average)),
        ("group_mean", scalar(got.group_mean)),
    ]))
}

fn labels(case: &Case) -> Result<Tensors> {
    let (pred, label) = (integers(case, "pred")?, integers(case, "label")?);
    Ok(named([
        ("mcc", scalar(agreement::mcc(&pred, &label)?)),
        ("nmi", scalar(agreement::nmi(&pred, &label)?)),
    ]))
}

fn spread(case: &Case) -> Result<Tensors> {
    let acc = case.input("acc")?;
    ensure!(acc.size().last() == Some(&3), BadData, "{}: acc must have three columns", case.dir.display());
    let rows = check::to_f64(acc);
    let std: Vec<f64> = rows.chunks_exact(3).map(|row| imbalance_std([row[0], row[1], row[2]])).collect();
    Ok(named([("std", Tensor::from_slice(&std))]))
}

fn integers(case: &Case, name: &str) -> Result<Vec<i64>> {
    Ok(check::to_i64(case.input(name)?))
}

fn scalar(value: f64) -> Tensor {
    Tensor::from_slice(&[value])
}

/// The oracle writes -1 for a class or group without samples.
fn or_absent(accuracies: &[Option<f64>]) -> Tensor {
    Tensor::from_slice(&accuracies.iter().map(|accuracy| accuracy.unwrap_or(-1.)).collect::<Vec<_>>())
}

fn named<const N: usize>(tensors: [(&str, Tensor); N]) -> Tensors {
    tensors.map(|(name, tensor)| (name.to_string(), tensor)).into()
}
