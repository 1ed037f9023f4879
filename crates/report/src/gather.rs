//! Collects the side files of a run directory.

use crate::results::{Dropout, Evaluation, Grid, Provenance, Search, SetMetrics, Toy};
use equipoise_base::{Error, ExitCode, Result, ResultExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;

/// Everything that a run has left for people so far.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Classifiers.
    pub evaluation: Option<Evaluation>,
    /// Synthetic sets.
    pub sets: Option<SetMetrics>,
    /// Guidance grid.
    pub grid: Option<Grid>,
    /// Sweep of the dropout probability.
    pub dropout: Option<Dropout>,
    /// 2-D toy.
    pub toy: Option<Toy>,
    /// One entry per stage folder, by name.
    pub stages: Vec<StageFacts>,
    /// Pictures: title and PNG bytes, in order.
    pub pictures: Vec<(String, Vec<u8>)>,
}

/// What a stage did and cost.
#[derive(Debug)]
pub struct StageFacts {
    /// Folder name, such as `train.feedback.k0.s1`.
    pub name: String,
    /// Name of its outcome, such as `done`.
    pub outcome: String,
    /// Number of attempts.
    pub attempts: u64,
    /// What it ran on, if it has finished.
    pub provenance: Option<Provenance>,
    /// What was tried out for it before, if it is a training that takes the best of several settings.
    pub search: Option<Search>,
    /// Rows of its `metrics.jsonl` that a later attempt has not superseded.
    pub metrics: Vec<Value>,
}

/// Reads what is there; a missing file is a part not yet made, a broken one is an error.
///
/// # Errors
/// 65 naming the file that cannot be read.
pub fn gather(run: &Path) -> Result<Gathered> {
    let stages = run.join("stages");
    let mut gathered = Gathered {
        evaluation: read_json(&stages.join("evaluate/results.json"))?,
        sets: read_json(&stages.join("metrics/results.json"))?,
        grid: read_json(&stages.join("grid/results.json"))?,
        dropout: read_json(&stages.join("dropout/results.json"))?,
        toy: read_json(&stages.join("toy/results.json"))?,
        ..Gathered::default()
    };
    let mut names: Vec<String> = list(&stages);
    names.sort();
    for name in names {
        let dir = stages.join(&name);
        let outcome: Option<Value> = read_json(&dir.join("outcome.json"))?;
        let text =
            |key: &str| outcome.as_ref().and_then(|o| o[key].as_str()).unwrap_or("running").to_string();
        gathered.stages.push(StageFacts {
            outcome: text("name"),
            attempts: outcome.as_ref().and_then(|o| o["attempt"].as_u64()).unwrap_or(1),
            provenance: read_json(&dir.join("provenance.json"))?,
            search: read_json(&dir.join("search.json"))?,
            metrics: rows(&dir.join("metrics.jsonl")),
            name,
        });
    }
    for stage in ["metrics", "grid", "dropout"] {
        let dir = stages.join(stage);
        let mut files: Vec<String> = list(&dir).into_iter().filter(|file| file.ends_with(".png")).collect();
        files.sort();
        for file in files {
            let path = dir.join(&file);
            let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
            gathered.pictures.push((file.trim_end_matches(".png").to_string(), bytes));
        }
    }
    Ok(gathered)
}

fn list(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(serde_json::from_str(&text).or_exit(ExitCode::BadData, path.display())?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

/// The newest attempt's row for every step, by step; a torn last line is skipped.
fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut by_step = std::collections::BTreeMap::new();
    for row in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        if let Some(step) = row["step"].as_u64() {
            by_step.insert(step, row);
        }
    }
    by_step.into_values().collect()
}
