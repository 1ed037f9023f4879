//! `equipoise-generate`, stage `toy`: the paper's two-dimensional example (seed 002 Fig. 6).

use crate::step::Step;
use equipoise_base::{Error, Result, ResultExt};
use equipoise_diffusion::toy;
use equipoise_report::results::{Toy, ToyArm, ToyPoint};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Points of each panel of the picture.
const SHOWN: usize = 600;

/// `[toy]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToyParams {
    /// Seeds; ranks share them.
    #[schemars(length(min = 1))]
    #[serde(default = "three")]
    pub seeds: Vec<u64>,
}

fn three() -> Vec<u64> {
    vec![0, 1, 2]
}

/// Trains, samples and judges one toy per seed.
///
/// # Errors
/// Those of the transport.
pub fn run(step: &Step) -> Result<()> {
    let params: ToyParams = step.params()?;
    let mine = params.seeds.iter().enumerate().filter(|(at, _)| at % step.world() == step.rank());
    let mut own = Vec::new();
    for (at, &seed) in mine {
        let start = Instant::now();
        own.push((at, toy::run(seed)?));
        step.measured("seeds", 1, start.elapsed());
        step.comm_beat();
        if step.rehearses() {
            break;
        }
    }
    let bytes = serde_json::to_vec(&own).or_exit(equipoise_base::ExitCode::Bug, "toy")?;
    let mut all: Vec<(usize, toy::Toy)> = Vec::new();
    for bytes in step.comm().all_gather(&bytes)? {
        let part: Vec<(usize, toy::Toy)> =
            serde_json::from_slice(&bytes).or_exit(equipoise_base::ExitCode::Bug, "toy")?;
        all.extend(part);
    }
    all.sort_by_key(|(at, _)| *at);
    let toys: Vec<toy::Toy> = all.into_iter().map(|(_, toy)| toy).collect();
    let first = toys.first().ok_or_else(|| Error::config("toy.seeds: give at least one seed"))?;
    let arms = (0..first.arms.len()).map(|arm| summary(&toys, arm)).collect();
    if step.is_root() {
        step.commit_json(&step.dir().join("results.json"), &Toy { arms, real: thin(&first.real) })?;
    }
    Ok(())
}

fn summary(toys: &[toy::Toy], arm: usize) -> ToyArm {
    let of = |read: fn(&toy::ToyArm) -> f64| toys.iter().map(|toy| read(&toy.arms[arm])).collect();
    let first = &toys[0].arms[arm];
    ToyArm {
        name: first.name.clone(),
        minority_share: of(|arm| arm.minority_share),
        validity: of(|arm| arm.validity),
        minority_accuracy: of(|arm| arm.linear_minority_accuracy),
        points: thin(&first.points),
    }
}

fn thin(points: &[toy::ToyPoint]) -> Vec<ToyPoint> {
    let every = points.len().div_ceil(SHOWN).max(1);
    points.iter().step_by(every).map(|p| ToyPoint { x: p.x, y: p.y, class: p.label as u8 }).collect()
}
