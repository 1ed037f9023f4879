//! The settings that a training of an arm takes: its own, those that it is to try out, or the best of those tried before.

use crate::step::Step;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _};
use equipoise_config::pipeline::{Candidate, Settings};
use equipoise_report::results::{Search, Tried};
use serde_json::Value;

/// The best of what `candidates` have tried, the first of equals, which is noted in `search.json`; none if there are none.
///
/// # Errors
/// 65 when what a candidate has seen cannot be read.
pub fn best(step: &Step, candidates: &[Candidate]) -> Result<Option<Settings>> {
    let tried = candidates.iter().map(|candidate| tried(step, candidate)).collect::<Result<Vec<_>>>()?;
    let better =
        |best: usize, next: usize| if tried[next].accuracy > tried[best].accuracy { next } else { best };
    let Some(taken) = (0..tried.len()).reduce(better) else { return Ok(None) };
    if step.is_root() {
        let Tried { lr, global_batch, accuracy, .. } = tried[taken];
        equipoise_telemetry::info!(
            "draw {taken} of {} does best, {:.2} %: learning rate {lr}, {global_batch} images per step",
            tried.len(),
            100. * accuracy
        );
        step.commit_json(&step.dir().join("search.json"), &Search { tried, taken })?;
    }
    Ok(Some(candidates[taken].settings.clone()))
}

fn tried(step: &Step, candidate: &Candidate) -> Result<Tried> {
    let path = step.stage_path(&candidate.stage).join("validation.json");
    let text = std::fs::read_to_string(&path).map_err(|error| Error::io("read", &path, error))?;
    let seen: Value = serde_json::from_str(&text).or_exit(ExitCode::BadData, path.display())?;
    let (at, accuracy) = (seen["step"].as_u64(), seen["accuracy"].as_f64());
    let (Some(at), Some(accuracy)) = (at, accuracy) else {
        return Err(Error::data(format!("{}: no accuracy", path.display())));
    };
    let Settings { lr, global_batch, .. } = candidate.settings;
    Ok(Tried { stage: candidate.stage.clone(), lr, global_batch, step: at, accuracy })
}
