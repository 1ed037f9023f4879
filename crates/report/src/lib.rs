//! The answer of a run: one self-contained page, and the same numbers as CSV and JSON.
//!
//! Reads only the JSON and PNG side files that stages leave ([`results`]), so it runs on a login node.

mod figures;
mod gather;
pub mod interval;
pub mod pace;
mod page;
pub mod results;
mod table;

pub use gather::{Gathered, gather};
pub use interval::Interval;

use equipoise_base::Result;
use serde::Serialize;
use std::collections::BTreeMap;

/// What the recipe says about the page.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Name of the run.
    pub title: String,
    /// Arm that differences are taken against.
    pub baseline: String,
    /// Arms in the order of the recipe.
    pub arms: Vec<ArmLabel>,
    /// The recipe makes synthetic sets.
    pub has_sets: bool,
    /// Split that the page's accuracies are measured on.
    pub split: String,
    /// Caveats and remarks of the recipe, one paragraph each.
    pub notes: Vec<String>,
    /// The resolved configuration, as TOML.
    pub config: String,
    /// Identity of the whole run.
    pub identity: String,
    /// Wall time of stages, where there was an expectation.
    pub costs: BTreeMap<String, Cost>,
}

/// Wall seconds of a stage, from the start of its processes to their end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// What the calibration let expect.
    pub expected: f64,
    /// What it took over all its launches, if it is done.
    pub took: Option<f64>,
}

/// How an arm is shown.
#[derive(Clone, Debug, Default)]
pub struct ArmLabel {
    /// Name in the recipe.
    pub name: String,
    /// What the page calls it.
    pub label: String,
    /// It was given real images that the others do not have: a ceiling, out of the race.
    pub is_ceiling: bool,
}

/// The files of a report, ready to be committed.
#[derive(Clone, Debug)]
pub struct Report {
    /// `report.html`, with every picture inside.
    pub html: String,
    /// `report.csv`: arm, set seed, seed, split, metric, value.
    pub csv: String,
    /// `report.json`: summaries with intervals, and everything they come from.
    pub json: String,
}

/// Makes the report of what is there; parts whose stage has not finished are named as missing.
///
/// # Errors
/// 65 when a side file cannot be read as what it should be.
pub fn render(gathered: &Gathered, context: &Context) -> Result<Report> {
    let summary = table::summarize(gathered, context);
    Ok(Report {
        html: page::render(gathered, context, &summary)?,
        csv: table::csv(gathered),
        json: table::json(gathered, context, &summary)?,
    })
}
