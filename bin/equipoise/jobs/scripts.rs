//! The batch scripts of a run.

use crate::runner::{Run, environment, usable_ranks};
use crate::steps;
use equipoise_base::Result;
use equipoise_config::Stage;
use equipoise_config::slurm::Job;
use equipoise_slurm::script::{Request, Script, render};
use equipoise_slurm::{settings, shape};

/// What a stage asks Slurm for.
///
/// # Errors
/// 78 with the place of a time or a pattern that is none.
pub fn job_of(run: &Run, stage: &Stage) -> Result<Job> {
    let slurm = &run.resolved.recipe.slurm;
    settings::of_stage(slurm, &stage.name).map_err(|error| {
        let table = run.resolved.at("slurm");
        let table = match settings::pattern_of(slurm, &stage.name, |job| job.time.is_some()) {
            Some(pattern) => table.and_then(|slurm| slurm.get("stages")?.get(pattern)),
            None => table,
        };
        match table.and_then(|table| table.get("time")) {
            Some(time) if error.message().starts_with("slurm.time") => error.context(&time.origin),
            _ => error,
        }
    })
}

/// Renders the scripts of these stages; an array has at most `max_array` tasks.
///
/// # Errors
/// 78 naming the key of `[slurm]` or the program that cannot be used.
pub fn scripts(run: &Run, stages: &[&Stage], max_array: u32) -> Result<Vec<Script>> {
    let recipe = &run.resolved.recipe;
    let environment = environment(&recipe.run)?;
    let front_end = steps::front_end()?;
    let script = |stage: &&Stage| {
        let job = job_of(run, stage)?;
        let program = match (stage.kind.program(), &job.container) {
            (None, _) => None,
            (Some(program), None) => Some(steps::find(program)?),
            // It may be in the image only.
            (Some(program), Some(_)) => Some(front_end.with_file_name(program)),
        };
        // A stage without batch sizes is an error that says so, and one is enough.
        usable_ranks(stage, 1)?;
        let usable = |ranks: u32| usable_ranks(stage, ranks as usize).map_or(1, |ranks| ranks as u32);
        render(&Request {
            slurm: &recipe.slurm,
            name: &recipe.run.name,
            run: run.dir.root(),
            stage,
            shape: shape::of(&job, stage, recipe.run.ranks, max_array, &usable),
            front_end: &front_end,
            program: program.as_deref(),
            threads: recipe.run.threads,
            environment: &environment,
        })
    };
    stages.iter().map(script).collect()
}
