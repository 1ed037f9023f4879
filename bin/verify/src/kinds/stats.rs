//! Kind `stats`: streaming class statistics and the hardness score.

use crate::case::{Case, Tensors};
use equipoise_base::{Result, ensure};
use equipoise_nn::runtime;
use equipoise_numerics::{ClassMoments, Hardness, Spread};
use tch::Tensor;

/// Streams the features in the chunks of the case, then scores the queries.
pub fn check(case: &Case) -> Result<Tensors> {
    let (features, label) = (case.input("features")?, case.input("label")?);
    let (query, query_label) = (case.input("query")?, case.input("query_label")?);
    let dim = features.size().last().copied().unwrap_or(0);
    let mut stats = ClassMoments::new(case.param("num_classes")?, dim, Spread::PerClass, runtime::device());
    let chunks: Vec<i64> = case.param("chunks")?;
    let rows: i64 = chunks.iter().sum();
    let whole = chunks.iter().all(|&length| length >= 0)
        && features.size().first() == Some(&rows)
        && label.size() == [rows];
    ensure!(whole, BadData, "{}: the chunks do not add up to the features and labels", case.dir.display());
    let mut start = 0;
    for length in chunks {
        stats.update(&features.narrow(0, start, length), &label.narrow(0, start, length))?;
        start += length;
    }
    let hardness = Hardness::new(&stats, case.param("eps")?)?;
    let covariances: Vec<Tensor> = (0..stats.slots()).map(|class| stats.covariance(class)).collect();
    let (count, mean, _) = stats.to_parts();
    Ok(Tensors::from(
        [
            ("count", count),
            ("mean", mean),
            ("cov", Tensor::stack(&covariances, 0)),
            ("cov_inv", hardness.precision().shallow_clone()),
            ("logdet", hardness.logdet().shallow_clone()),
            ("hardness", hardness.value(query, query_label)?),
            ("hardness_grad", hardness.gradient(query, query_label)?),
        ]
        .map(|(name, tensor)| (name.to_string(), tensor)),
    ))
}
