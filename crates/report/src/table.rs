//! Numbers of the report as tables: summaries over seeds, CSV, JSON.

use crate::gather::Gathered;
use crate::results::{ArmRun, Scores};
use crate::{ArmLabel, Context, Interval};
use equipoise_base::{ExitCode, Result, ResultExt};
use serde::Serialize;
use std::fmt::Write as _;

/// Reads one metric; `None` where no class is in the group.
type Read = fn(&Scores) -> Option<f64>;

/// A column of the main table: key, heading, how to read it from the scores.
pub type Metric = (&'static str, &'static str, Read);

/// Columns of the main table.
const METRICS: [Metric; 5] = [
    ("all", "all", |scores| Some(scores.all)),
    ("many", "many (>100)", |scores| scores.many),
    ("medium", "medium (20-100)", |scores| scores.medium),
    ("few", "few (<20)", |scores| scores.few),
    ("rare3", "3 rarest", |scores| scores.rare3),
];

/// More columns, where a data set has groups.
const GROUP_METRICS: [Metric; 2] = [
    ("worst_group", "worst group", |scores| scores.groups.as_ref().map(|groups| groups.worst)),
    ("group_mean", "mean of groups", |scores| scores.groups.as_ref().map(|groups| groups.mean)),
];

/// The columns of a run.
pub fn metrics(gathered: &Gathered) -> Vec<Metric> {
    let has_groups = gathered.evaluation.as_ref().is_some_and(|evaluation| !evaluation.groups.is_empty());
    let of_groups: &[Metric] = if has_groups { &GROUP_METRICS } else { &[] };
    METRICS.iter().chain(of_groups).copied().collect()
}

/// One arm over its seeds.
#[derive(Debug, Serialize)]
pub struct ArmSummary {
    /// Arm of the recipe.
    pub arm: String,
    /// Label to show.
    pub label: String,
    /// Out of the race: see [`crate::ArmLabel`].
    pub is_ceiling: bool,
    /// One cell per column of [`metrics`]; null where no class is in the group.
    pub cells: Vec<Option<Cell>>,
    /// Mean accuracy by class.
    pub per_class: Vec<Option<f64>>,
    /// Mean accuracy by group; empty if the data set has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub per_group: Vec<Option<f64>>,
}

/// A metric of an arm.
#[derive(Debug, Serialize)]
pub struct Cell {
    /// Over set and classifier seeds.
    pub value: Interval,
    /// Against the baseline; null for the baseline itself.
    pub difference: Option<Interval>,
}

/// All arms on the page's split, in the order of the recipe.
pub fn summarize(gathered: &Gathered, context: &Context) -> Vec<ArmSummary> {
    let Some(evaluation) = &gathered.evaluation else { return Vec::new() };
    let of_arm = |arm: &str| -> Vec<&Scores> {
        let runs = evaluation.runs.iter().filter(|run| run.arm == arm);
        runs.filter_map(|run: &ArmRun| run.scores.get(&context.split)).collect()
    };
    let over_seeds = |arm: &str, read: Read| {
        let values: Vec<f64> = of_arm(arm).into_iter().filter_map(read).collect();
        Interval::of(&values)
    };
    let metrics = metrics(gathered);
    let arms = context.arms.iter().filter(|arm| !of_arm(&arm.name).is_empty());
    arms.map(|ArmLabel { name, label, is_ceiling }| {
        let cell = |read: Read| {
            let value = over_seeds(name, read)?;
            let baseline = (*name != context.baseline).then(|| over_seeds(&context.baseline, read)).flatten();
            Some(Cell { value, difference: baseline.map(|baseline| value.minus(&baseline)) })
        };
        let mean = |read: &dyn Fn(&Scores) -> Option<f64>| {
            let values: Vec<f64> = of_arm(name).into_iter().filter_map(read).collect();
            Interval::of(&values).map(|interval| interval.mean)
        };
        let of_class = |class: usize| mean(&|scores| *scores.per_class.get(class)?);
        let of_group = |group: usize| mean(&|scores| *scores.groups.as_ref()?.per_group.get(group)?);
        ArmSummary {
            arm: name.clone(),
            label: label.clone(),
            is_ceiling: *is_ceiling,
            cells: metrics.iter().map(|(_, _, read)| cell(*read)).collect(),
            per_class: (0..evaluation.classes.len()).map(of_class).collect(),
            per_group: (0..evaluation.groups.len()).map(of_group).collect(),
        }
    })
    .collect()
}

/// One line per number, for a spreadsheet.
pub fn csv(gathered: &Gathered) -> String {
    let mut out = String::from("arm,set_seed,seed,split,metric,value\n");
    let Some(evaluation) = &gathered.evaluation else { return out };
    for run in &evaluation.runs {
        let set_seed = run.set_seed.map(|seed| seed.to_string()).unwrap_or_default();
        for (split, scores) in &run.scores {
            let mut line = |metric: &str, value: f64| {
                let _ =
                    writeln!(out, "{},{set_seed},{},{split},{metric},{value:.6}", quote(&run.arm), run.seed);
            };
            for (metric, _, read) in metrics(gathered) {
                if let Some(value) = read(scores) {
                    line(metric, value);
                }
            }
            for (class, value) in scores.per_class.iter().enumerate() {
                if let Some(value) = value {
                    line(&format!("class {class}"), *value);
                }
            }
            let groups = scores.groups.iter().flat_map(|groups| groups.per_group.iter().enumerate());
            for (group, value) in groups.filter_map(|(group, value)| Some((group, (*value)?))) {
                line(&format!("group {group}"), value);
            }
        }
    }
    out
}

fn quote(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_string()
    }
}

/// Summaries and their sources.
pub fn json(gathered: &Gathered, context: &Context, summary: &[ArmSummary]) -> Result<String> {
    let stages: Vec<_> = gathered
        .stages
        .iter()
        .map(|stage| {
            serde_json::json!({ "name": stage.name, "outcome": stage.outcome, "attempts": stage.attempts,
                "provenance": stage.provenance })
        })
        .collect();
    let value = serde_json::json!({
        "title": context.title, "identity": context.identity, "split": context.split,
        "baseline": context.baseline, "metrics": metrics(gathered).iter().map(|(key, _, _)| key).collect::<Vec<_>>(), "arms": summary,
        "evaluation": gathered.evaluation, "sets": gathered.sets, "grid": gathered.grid, "dropout": gathered.dropout,
        "toy": gathered.toy.as_ref().map(|toy| toy.arms.iter().map(|arm| serde_json::json!({
            "name": arm.name, "minority_share": arm.minority_share,
            "validity": arm.validity, "minority_accuracy": arm.minority_accuracy,
        })).collect::<Vec<_>>()),
        "stages": stages, "costs": context.costs,
    });
    serde_json::to_string_pretty(&value).or_exit(ExitCode::Bug, "report.json")
}
