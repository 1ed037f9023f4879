//! Random search for an arm's learning rate and batch size, as in SubpopBench (Yang et al. 2023) and seed 002, Table 1:
//! some pairs are drawn, each is a training of its own, and the one that does best on a split is taken for all seeds.

use crate::recipe::{Classifier, Search};
use equipoise_base::rng::Key;
use serde::{Deserialize, Serialize};

/// What a training does instead of what its own keys say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Learning rate of the optimizer.
    pub lr: f64,
    /// Images per step.
    pub global_batch: u64,
    /// Images that BatchNorm sees at once.
    pub micro_batch: u64,
    /// Training steps: as many images as the recipe's steps have.
    pub steps: u64,
    /// Steps between looks at the split that decides: after as many images as the recipe's.
    pub validate_every: u64,
}

/// A training that tries settings out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its stage.
    pub stage: String,
    /// What it tries.
    pub settings: Settings,
}

/// The settings that `search` tries instead of those of `training`. More draws leave the first ones as they are, and two
/// arms with the same ranges try the same pairs.
pub(super) fn draws(search: &Search, training: &Classifier) -> Vec<Settings> {
    // Ranks share micro-batches: their number stays, so that every draw runs on as many ranks.
    let micro_batches = (training.global_batch / training.micro_batch).max(1);
    let draw = |index: u64| {
        let mut stream = Key::new(search.seed, "search").index(index).stream();
        let mut log_uniform =
            |[low, high]: [f64; 2]| libm::exp(stream.range(libm::log(low), libm::log(high))).clamp(low, high);
        let lr = three_digits(log_uniform(search.lr));
        let wanted = log_uniform(search.global_batch.map(|images| images as f64));
        let micro_batch = ((wanted / micro_batches as f64).round() as u64).max(1);
        let global_batch = micro_batch * micro_batches;
        let scaled = |steps: u64| {
            ((steps as f64 * training.global_batch as f64 / global_batch as f64).round() as u64).max(1)
        };
        let every = training.validate.as_ref().map_or(training.steps, |validate| validate.every_steps);
        Settings {
            lr,
            global_batch,
            micro_batch,
            steps: scaled(training.steps),
            validate_every: scaled(every),
        }
    };
    (0..search.draws).map(draw).collect()
}

/// Enough for a search, and short to write down.
fn three_digits(value: f64) -> f64 {
    format!("{value:.2e}").parse().unwrap_or(value)
}
