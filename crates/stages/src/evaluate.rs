//! `equipoise-metrics`, stage `evaluate`: top-1 accuracy of every trained classifier, by split, group and class.

use crate::features::{evaluate, labels_of};
use crate::inputs::{self, SplitGroups};
use crate::step::Step;
use equipoise_base::Result;
use equipoise_catalog::shots::rarest;
use equipoise_config::method;
use equipoise_metrics::{Confusion, GroupAccuracy};
use equipoise_numerics::check;
use equipoise_report::results::{ArmRun, Evaluation, GroupScores, Scores};
use serde::Deserialize;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Classes that the report counts as the rarest.
const RAREST: usize = 3;

#[derive(Clone, Debug, Deserialize)]
struct EvaluateParams {
    splits: Vec<String>,
    runs: Vec<RunOf>,
}

/// A trained classifier of an arm.
#[derive(Clone, Debug, Deserialize)]
struct RunOf {
    stage: String,
    arm: String,
    set_seed: Option<u64>,
    seed: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct ArmNetwork {
    arch: method::Arch,
    augment: method::Augment,
}

/// Scores all arms and writes `results.json`.
///
/// # Errors
/// 65 when an input is damaged.
pub fn run(step: &Step) -> Result<()> {
    let params: EvaluateParams = step.params()?;
    let train = &step.recipe().classifier.split;
    let (classes, train_counts) = inputs::split_counts(step, train)?;
    let (groups, train_group_counts) = match inputs::split_groups(step, train)? {
        Some(groups) => (groups.names.clone(), groups.counts()),
        None => Default::default(),
    };
    let splits: Vec<(String, inputs::Images, Option<SplitGroups>)> = params
        .splits
        .iter()
        .map(|split| Ok((split.clone(), inputs::split(step, split)?, inputs::split_groups(step, split)?)))
        .collect::<Result<_>>()?;
    let mut runs = Vec::new();
    for run in &params.runs {
        let arm = arm_network(step, &run.arm)?;
        let weights = step.stage_path(&run.stage).join("model.safetensors");
        let network = step.frozen(&arm.arch, &weights)?;
        let augment = crate::data::evaluation_ops(&arm.augment.parse()?);
        let mut scores = BTreeMap::new();
        for (split, images, groups) in &splits {
            let outputs = evaluate(step, &network, &augment, images)?;
            let (logits, labels) = (outputs.logits.to_kind(Kind::Double), labels_of(images));
            let confusion = Confusion::of_logits(&logits, &labels)?;
            let groups = groups.as_ref().map(|groups| by_group(&logits, &labels, groups)).transpose()?;
            let scores_of_all = summarize(&confusion, &train_counts, RAREST)?;
            scores.insert(split.clone(), Scores { groups: groups.flatten(), ..scores_of_all });
        }
        runs.push(ArmRun { arm: run.arm.clone(), set_seed: run.set_seed, seed: run.seed, scores });
    }
    if step.is_root() {
        let evaluation = Evaluation { classes, train_counts, groups, train_group_counts, runs };
        step.commit_json(&step.dir().join("results.json"), &evaluation)?;
    }
    Ok(())
}

fn arm_network(step: &Step, arm: &str) -> Result<ArmNetwork> {
    let table = step.recipe().arms.get(arm).map(|arm| &arm.training).unwrap_or(&step.recipe().classifier);
    Ok(ArmNetwork { arch: table.arch.clone(), augment: table.augment.clone() })
}

/// Accuracy by group, over the images that are of one; none if no image is.
fn by_group(logits: &Tensor, labels: &Tensor, groups: &SplitGroups) -> Result<Option<GroupScores>> {
    let (predictions, labels) = (check::to_i64(&logits.argmax(1, false)), check::to_i64(labels));
    let grouped: Vec<usize> = (0..labels.len()).filter(|&row| groups.of_image[row] >= 0).collect();
    let of = |values: &[i64]| grouped.iter().map(|&row| values[row]).collect::<Vec<i64>>();
    let accuracy =
        GroupAccuracy::of(groups.names.len(), &of(&predictions), &of(&labels), &of(&groups.of_image))?;
    let worst = accuracy.worst.zip(accuracy.worst_group);
    Ok(worst.map(|(worst, worst_group)| GroupScores {
        worst,
        worst_group,
        mean: accuracy.group_mean,
        per_group: accuracy.groups,
    }))
}

fn summarize(confusion: &Confusion, train_counts: &[u64], k: usize) -> Result<Scores> {
    let splits = confusion.splits(train_counts)?;
    let group =
        |split: &equipoise_metrics::accuracy::Split| (split.classes > 0).then_some(split.macro_average);
    let rare: Vec<f64> =
        rarest(train_counts, k).into_iter().filter_map(|class| splits.per_class[class]).collect();
    Ok(Scores {
        images: confusion.total(),
        all: splits.accuracy,
        many: group(&splits.many),
        medium: group(&splits.medium),
        few: group(&splits.few),
        rare3: (!rare.is_empty()).then(|| rare.iter().sum::<f64>() / rare.len() as f64),
        per_class: splits.per_class,
        groups: None,
    })
}
