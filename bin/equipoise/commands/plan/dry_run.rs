//! `equipoise submit --dry-run`: what a run takes as batch jobs, from counts and from measured speed.

use super::time::Times;
use super::{Plan, Sizes, limit, plan};
use crate::cost::{Estimator, Source};
use crate::jobs;
use crate::output::{self, Format};
use crate::runner::{Run, stage_dir};
use equipoise_base::{ExitCode, Result};
use equipoise_config::slurm::Job;
use equipoise_config::{Kind, Stage};
use equipoise_rundir::stage::Status;
use equipoise_rundir::{RealFs, RunDir};
use equipoise_slurm::estimate::{self, Measured};
use equipoise_slurm::shape::Shape;
use equipoise_slurm::{Commands, duration, query};
use equipoise_telemetry::human_duration;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// One job.
#[derive(Debug, Serialize)]
struct Row {
    stage: String,
    nodes: u32,
    ranks: u32,
    array: Option<u32>,
    /// Images or steps; null for stages that count nothing worth planning.
    units: Option<u64>,
    /// Seconds at the measured speed; null if it was not measured.
    seconds: Option<f64>,
    /// Where it was measured.
    measured_by: Option<String>,
    rank_hours: Option<f64>,
    gpu_hours: Option<f64>,
    cpu_hours: Option<f64>,
    /// Attempts at this time limit; null without speed or limit.
    attempts: Option<u64>,
    time: Option<String>,
}

#[derive(Debug, Serialize)]
struct DryRun {
    run: PathBuf,
    jobs: Vec<Row>,
    bytes: u64,
    files: u64,
    free_bytes: u64,
    free_files: Option<u64>,
    /// The command that measures what was not.
    #[serde(skip)]
    calibrate: String,
}

/// Where speeds come from, beside the run itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speeds<'a> {
    /// Another run.
    pub measured: Option<&'a Path>,
    /// A calibration.
    pub calibration: Option<&'a Path>,
}

/// Shows what submitting would take. `recipe` is what the user typed for it.
///
/// # Errors
/// 73 if space or files do not suffice; as planning and rendering otherwise.
pub fn dry_run(run: &Run, speeds: Speeds<'_>, recipe: &str, format: Format) -> Result<ExitCode> {
    run.check_identities()?;
    let estimator = Estimator::new(run, speeds.measured, speeds.calibration)?;
    let plan = plan(run, &estimator)?;
    let sizes = Sizes::read(run)?;
    let times = Times::new(run, &sizes, &estimator)?;
    let measured = speeds.measured.map_or_else(|| run.dir.clone(), RunDir::new);
    let mut missing = Vec::new();
    for stage in &run.stages {
        if !run.is_done(stage)? {
            missing.push(stage);
        }
    }
    let scripts = jobs::scripts(run, &missing, query::max_array(&Commands::default()))?;
    let rows: Result<Vec<Row>> = missing
        .iter()
        .zip(&scripts)
        .map(|(stage, script)| Row::new(run, stage, script.shape, &plan, (&times, &measured)))
        .collect();
    let shown = DryRun {
        run: run.dir.root().into(),
        jobs: rows?,
        bytes: plan.room.peak_bytes,
        files: plan.room.peak_files,
        free_bytes: plan.free_bytes,
        free_files: plan.free_files,
        calibrate: format!("equipoise calibrate {recipe}"),
    };
    match format {
        Format::Json => output::json(&shown),
        Format::Text => shown.print(),
    }
    plan.require_room()?;
    Ok(ExitCode::Done)
}

impl Row {
    fn new(
        run: &Run,
        stage: &Stage,
        shape: Shape,
        plan: &Plan,
        (times, measured): (&Times<'_>, &RunDir),
    ) -> Result<Self> {
        let slurm = &run.resolved.recipe.slurm;
        let job = jobs::job_of(run, stage)?;
        let tasks = shape.array.unwrap_or(1);
        let units = units(stage, plan);
        let all_ranks = shape.ranks.saturating_mul(tasks);
        // An attempt that has not finished knows its speed as well as any; it is asked if nothing better is known.
        let estimate = times.estimate(stage, all_ranks as usize);
        let speed = speed(measured, &stage.name)?.filter(|_| estimate.is_none());
        let seconds = match &estimate {
            Some(estimate) => Some(estimate.seconds),
            None => units.zip(speed).and_then(|(units, speed)| estimate::seconds(units, speed, all_ranks)),
        };
        let earlier = speed.map(|_| Source::Stage(stage.name.clone()));
        let measured_by = estimate.map(|estimate| estimate.source).or(earlier.filter(|_| seconds.is_some()));
        let hours = seconds.map(|seconds| seconds / 3600.0);
        let cpus =
            f64::from(all_ranks) * f64::from(job.cpus_per_task.unwrap_or(run.resolved.recipe.run.threads));
        let gpus = gpus(&job, shape).map(|gpus| f64::from(gpus) * f64::from(tasks));
        let limit = job.time.as_deref().and_then(duration::parse);
        Ok(Self {
            stage: stage.name.clone(),
            nodes: shape.nodes,
            ranks: shape.ranks,
            array: shape.array,
            units,
            seconds,
            measured_by: measured_by.map(|source| source.to_string()),
            rank_hours: hours.map(|hours| hours * f64::from(all_ranks)),
            gpu_hours: hours.zip(gpus).map(|(hours, gpus)| hours * gpus),
            cpu_hours: hours.map(|hours| hours * cpus),
            attempts: seconds
                .zip(limit)
                .map(|(seconds, limit)| estimate::attempts(seconds, limit, slurm.signal_lead)),
            time: job.time,
        })
    }

    fn cells(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let unmeasured = self.units.map_or("-", |_| "not measured");
        vec![
            self.stage.clone(),
            or_dash(self.array.map(|tasks| tasks.to_string())),
            self.nodes.to_string(),
            self.ranks.to_string(),
            or_dash(self.units.map(|units| units.to_string())),
            self.seconds.map_or(unmeasured.into(), human_duration),
            or_dash(self.attempts.map(|attempts| attempts.to_string())),
            self.measured_by.clone().unwrap_or_default(),
        ]
    }
}

/// How much there is to do.
fn units(stage: &Stage, plan: &Plan) -> Option<u64> {
    let text = |key: &str| stage.params[key].as_str().unwrap_or_default();
    match stage.kind {
        Kind::Prepare | Kind::Embed => {
            plan.splits.iter().find(|split| split.name == text("split")).map(|it| it.images)
        }
        Kind::Generate => plan.sets.iter().find(|set| set.name == text("set")).map(|set| set.images),
        Kind::Diffusion => stage.params["train"]["steps"].as_u64(),
        Kind::Classifier | Kind::Arm => stage.params["steps"].as_u64(),
        _ => None,
    }
}

/// What the stage of this name did last in a run.
fn speed(measured: &RunDir, stage: &str) -> Result<Option<Measured>> {
    let status = Status::read(&RealFs, &stage_dir(measured, stage)?)?;
    Ok(status.and_then(|status| Some(Measured { rate: status.rate?, ranks: status.ranks })))
}

/// GPUs of a job; none if it asks for none.
fn gpus(job: &Job, shape: Shape) -> Option<u32> {
    // `4`, `a100:4`, `gpu:a100:4`.
    let count = |text: &String| text.rsplit(':').next().and_then(|count| count.parse::<u32>().ok());
    let gres = job.gres.as_ref().filter(|gres| gres.starts_with("gpu"));
    let per_node = job.gpus_per_node.as_ref().or(gres).and_then(count).map(|each| each * shape.nodes);
    let per_task = job.gpus_per_task.as_ref().and_then(count).map(|each| each * shape.ranks);
    job.gpus.as_ref().and_then(count).or(per_node).or(per_task)
}

impl DryRun {
    fn print(&self) {
        output::line(format!("run    {}", self.run.display()));
        output::line("");
        let rows: Vec<_> = self.jobs.iter().map(Row::cells).collect();
        let header = ["stage", "tasks", "nodes", "ranks", "units", "takes", "attempts", "measured by"];
        output::table(&header, &rows, &[1, 2, 3, 4, 5, 6]);
        output::line("");
        let unmeasured = self.jobs.iter().filter(|row| row.units.is_some() && row.seconds.is_none()).count();
        let but = match unmeasured {
            0 => String::new(),
            count => format!(
                ", and {count} stages whose speed was not measured ({} measures it; --measured RUN takes another run's)",
                self.calibrate
            ),
        };
        let sum = |of: fn(&Row) -> Option<f64>| self.jobs.iter().filter_map(of).sum::<f64>();
        let gpu = if self.jobs.iter().any(|row| row.gpu_hours.is_some()) {
            format!("{:.1} GPU-hours, ", sum(|row| row.gpu_hours))
        } else {
            String::new()
        };
        let (cpu, wall) = (sum(|row| row.cpu_hours), human_duration(sum(|row| row.seconds)));
        output::line(format!("takes  {gpu}{cpu:.1} CPU-hours{but}"));
        output::line(format!("       {wall} if one job follows the other"));
        let need = output::bytes(self.bytes);
        output::line(format!("needs  {need} and {} files, checkpoints included", self.files));
        let free = output::bytes(self.free_bytes);
        output::line(format!("free   {free}, {}", limit(self.free_files.unwrap_or(u64::MAX))));
    }
}
