//! How many ranks a stage is started with.

use super::is_training;
use equipoise_base::{Result, ensure};
use equipoise_config::recipe::Recipe;
use equipoise_config::{Kind, Stage};
use equipoise_workplan::ranks::Ownership;

/// `run.ranks`, or as many as the stage can use with the same bits.
///
/// # Errors
/// 101 if a training stage has no batch sizes.
pub fn ranks_of(recipe: &Recipe, stage: &Stage) -> Result<usize> {
    usable_ranks(stage, recipe.run.ranks as usize)
}

/// How many of `ranks` a stage can use with the same bits.
///
/// # Errors
/// 101 if a training stage has no batch sizes.
pub fn usable_ranks(stage: &Stage, ranks: usize) -> Result<usize> {
    if !stage.kind.is_parallel() {
        return Ok(1);
    }
    if !is_training(stage.kind) {
        return Ok(ranks);
    }
    let table = if stage.kind == Kind::Diffusion { &stage.params["train"] } else { &stage.params };
    let (global, micro) = (table["global_batch"].as_u64(), table["micro_batch"].as_u64());
    let micro_batches = global.unwrap_or(0).checked_div(micro.unwrap_or(0)).unwrap_or(0);
    ensure!(micro_batches > 0, Bug, "stage {} has no batch sizes", stage.name);
    let possible = Ownership::world_sizes(micro_batches as usize);
    Ok(possible.into_iter().filter(|&size| size <= ranks).max().unwrap_or(1))
}
