//! Runs the stages of a recipe in order: skips what is done, starts step binaries, believes their outcomes.

mod launcher;
mod ranks;

pub use launcher::{LauncherRecord, launcher_of};
pub use ranks::{ranks_of, usable_ranks};

use crate::commands::report;
use crate::cost::launches;
use crate::output::{self, Colour, Format};
use crate::steps;
use equipoise_base::{Error, ExitCode, Result, ensure};
use equipoise_comm::environment::{self, CpuCapability, Variable};
use equipoise_comm::launch::{Asked, Ended, Launch, Launcher, Output};
use equipoise_config::pipeline::CONFIGURATION;
use equipoise_config::recipe;
use equipoise_config::{BUILD_ID, Kind, Resolved, Stage, stages};
use equipoise_rundir::identity::IdentityRecord;
use equipoise_rundir::product::first_lost;
use equipoise_rundir::stage::{Outcome, last_attempt};
use equipoise_rundir::{
    RealFs, RunDir, StageDir, StageKey, commit_bytes, commit_json, create_dirs, read_json,
};
use equipoise_telemetry::human_duration;
use serde_json::json;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A configuration and where it runs.
#[derive(Debug)]
pub struct Run {
    /// Configuration.
    pub resolved: Resolved,
    /// Its stages, in order.
    pub stages: Vec<Stage>,
    /// Run directory.
    pub dir: RunDir,
}

impl Run {
    /// A run in `dir`; nothing is created yet.
    ///
    /// # Errors
    /// 78 if a file that an identity depends on cannot be read.
    pub fn new(resolved: Resolved, dir: PathBuf) -> Result<Self> {
        let stages = stages(&resolved)?;
        let dir = std::path::absolute(&dir).map_err(|error| Error::io("find", &dir, error))?;
        Ok(Self { resolved, stages, dir: RunDir::new(dir) })
    }

    /// The directory of a stage.
    ///
    /// # Errors
    /// 101 if the stage's name is none.
    pub fn stage_dir(&self, stage: &Stage) -> Result<StageDir> {
        stage_dir(&self.dir, &stage.name)
    }

    /// The stage is complete, under the very configuration that is asked for, and what it has made is there.
    ///
    /// # Errors
    /// 65, 74 if its records cannot be read.
    pub fn is_done(&self, stage: &Stage) -> Result<bool> {
        let Some(outcome) = self.completed(stage)? else { return Ok(false) };
        Ok(first_lost(&RealFs, &self.dir, &outcome.files)?.is_none())
    }

    /// A file of a completed stage that is gone or of another size, so that the stage has to be done again.
    fn lost(&self, stage: &Stage) -> Result<Option<String>> {
        let Some(outcome) = self.completed(stage)? else { return Ok(None) };
        Ok(first_lost(&RealFs, &self.dir, &outcome.files)?.map(str::to_string))
    }

    /// The outcome of a stage that was done under this configuration, whatever has become of its files.
    fn completed(&self, stage: &Stage) -> Result<Option<Outcome>> {
        let dir = self.stage_dir(stage)?;
        let outcome = Outcome::read(&RealFs, &dir)?.filter(|outcome| outcome.name == ExitCode::Done);
        let same = outcome.is_some() && recorded(&dir)?.is_some_and(|record| made_as(stage, &record));
        Ok(outcome.filter(|_| same))
    }

    /// Refuses to mix results of two configurations, before anything is started.
    ///
    /// # Errors
    /// 78 naming what differs.
    pub fn check_identities(&self) -> Result<()> {
        for stage in &self.stages {
            let dir = self.stage_dir(stage)?;
            let Some(record) = recorded(&dir)?.filter(|record| !made_as(stage, record)) else { continue };
            let fields = stage.identity_fields();
            let changed: Vec<String> = fields
                .iter()
                .filter(|(name, _)| *name != CONFIGURATION)
                .filter(|(name, value)| record.fields.get(*name) != Some(value))
                .map(|(name, value)| {
                    let was = record.fields.get(name).map_or("absent", String::as_str);
                    format!("{} was {was}, is {value}", name.trim_start_matches("params."))
                })
                .collect();
            let message =
                format!("stage {} was begun under another configuration: {}", stage.name, listed(&changed));
            let next = format!("give another --run, or remove {}", dir.root().display());
            return Err(Error::config(message).next(next));
        }
        Ok(())
    }
}

/// The first few of them.
fn listed(changes: &[String]) -> String {
    const SHOWN: usize = 6;
    match changes.len() {
        0 => "a key was removed".into(),
        count if count <= SHOWN => changes.join("; "),
        count => format!("{}; and {} more", changes[..SHOWN].join("; "), count - SHOWN),
    }
}

/// The directory of the stage `name`.
///
/// # Errors
/// 101 if no stage can have this name.
pub fn stage_dir(run: &RunDir, name: &str) -> Result<StageDir> {
    let bad = || Error::new(ExitCode::Bug, format!("'{name}' is no stage name"));
    Ok(run.stage(&StageKey::parse(name).ok_or_else(bad)?))
}

fn recorded(dir: &StageDir) -> Result<Option<IdentityRecord>> {
    read_json(&RealFs, &dir.identity())
}

fn made_as(stage: &Stage, record: &IdentityRecord) -> bool {
    record.fields.get(CONFIGURATION).is_some_and(|identity| identity == stage.identity.as_str())
}

/// Runs what is not done yet. Returns 75 if it was stopped, 1 if images are missing at the end.
///
/// # Errors
/// The error of the stage that failed.
pub fn run(run: &Run, format: Format) -> Result<ExitCode> {
    // First, so that a stop that comes during the checks is not a death.
    let mut launcher = Launcher::new()?;
    run.check_identities()?;
    crate::jobs::check_unowned(&run.dir)?;
    let needed: Vec<&Stage> = not_done(run)?;
    check_programs(&needed)?;
    crate::commands::plan::check_space(run, &needed)?;
    write_configuration(run)?;
    let _record = LauncherRecord::write(&run.dir)?;
    let show = Show { run, format };
    for stage in &run.stages {
        if run.is_done(stage)? {
            show.line(stage, "kept", None, None);
            continue;
        }
        if launcher.asked() != Asked::Nothing {
            return Ok(show.stopped(stage));
        }
        if let Some(file) = run.lost(stage)? {
            show.line(stage, "again", None, Some(&format!("{file} is gone or of another size")));
        }
        let start = Instant::now();
        let (code, message) = match stage.kind.program() {
            None => (report::write(run)?, None),
            Some(program) => start_step(&mut launcher, run, stage, program)?,
        };
        let seconds = start.elapsed().as_secs_f64();
        launches::note(&run.dir, &stage.name, code, seconds)?;
        match code {
            ExitCode::Done => show.line(stage, "done", Some(seconds), None),
            ExitCode::Requeue => return Ok(show.stopped(stage)),
            code => {
                show.line(stage, "failed", Some(seconds), message.as_ref().map(Error::message));
                return match message {
                    Some(error) => Err(error.context(format!("stage {}", stage.name))),
                    None => Ok(code),
                };
            }
        }
    }
    show.finished();
    Ok(ExitCode::Done)
}

fn not_done(run: &Run) -> Result<Vec<&Stage>> {
    let mut needed = Vec::new();
    for stage in &run.stages {
        if !run.is_done(stage)? {
            needed.push(stage);
        }
    }
    Ok(needed)
}

/// All step binaries are there and of this build, before the first of them starts.
fn check_programs(needed: &[&Stage]) -> Result<()> {
    let mut programs: Vec<&str> = needed.iter().filter_map(|stage| stage.kind.program()).collect();
    programs.sort_unstable();
    programs.dedup();
    programs.into_iter().try_for_each(|program| steps::of_this_build(program).map(drop))
}

/// `config.toml` and `identity.json` of the run; left alone if they say the same already.
///
/// # Errors
/// 74 if they cannot be written.
pub fn write_configuration(run: &Run) -> Result<()> {
    create_dirs(&RealFs, run.dir.root())?;
    let text = run.resolved.to_toml();
    if std::fs::read_to_string(run.dir.config()).ok().as_deref() != Some(&text) {
        commit_bytes(&RealFs, &run.dir.config(), text.as_bytes(), None)?;
        let identity = json!({ "identity": run.resolved.identity(), "build": BUILD_ID, "keys": run.resolved.identity_value() });
        commit_json(&RealFs, &run.dir.identity(), &identity, None)?;
    }
    Ok(())
}

/// Runs one step to its end; its outcome comes before its exit status, which mpirun may replace.
fn start_step(
    launcher: &mut Launcher,
    run: &Run,
    stage: &Stage,
    program: &str,
) -> Result<(ExitCode, Option<Error>)> {
    let dir = run.stage_dir(stage)?;
    let before = last_attempt(&RealFs, &dir)?;
    let ended = launcher.run(launch(run, stage, program)?)?;
    let outcome = Outcome::read(&RealFs, &dir)?.filter(|outcome| outcome.attempt > before);
    Ok(match outcome {
        Some(outcome) if outcome.name == ExitCode::Done => (ExitCode::Done, None),
        Some(outcome) => {
            let mut error = Error::new(outcome.name, outcome.message);
            if let Some(next) = outcome.next {
                error = error.next(next);
            }
            (outcome.name, Some(error))
        }
        None => without_outcome(&ended, &dir),
    })
}

/// A step that was killed, or that never got as far as to open its stage.
fn without_outcome(ended: &Ended, dir: &StageDir) -> (ExitCode, Option<Error>) {
    if ended.asked != Asked::Nothing {
        return (ExitCode::Requeue, None);
    }
    match (ended.signal, ended.status) {
        (Some(signal), _) => {
            let message = format!("the step was killed by signal {signal}; what it had committed is kept");
            (
                ExitCode::Io,
                Some(Error::new(ExitCode::Io, message).next("type the same command again to go on")),
            )
        }
        (None, status) => {
            let status = status.unwrap_or_default();
            // Without an outcome it did not do its work, whatever it says.
            let code =
                ExitCode::from_status(status).filter(|code| *code != ExitCode::Done).unwrap_or(ExitCode::Bug);
            let message =
                format!("the step ended with status {status} before it could record why; see above");
            (
                code,
                Some(
                    Error::new(code, message)
                        .next(format!("look into {}", dir.root().join("logs").display())),
                ),
            )
        }
    }
}

/// The variables that every rank of the run is started with.
///
/// # Errors
/// 78 for an unknown instruction set.
pub fn environment(settings: &recipe::Run) -> Result<Vec<Variable>> {
    let capability: CpuCapability = settings.cpu_capability.parse()?;
    Ok(environment::pinned(settings.threads as usize, Some(capability)))
}

/// How a stage is started on this machine.
///
/// # Errors
/// 78 if a program is missing, or mpirun for several ranks.
pub fn launch(run: &Run, stage: &Stage, program: &str) -> Result<Launch> {
    let settings = &run.resolved.recipe.run;
    let ranks = ranks_of(&run.resolved.recipe, stage)?;
    let argument = |text: &str| OsString::from(text);
    Ok(Launch {
        program: steps::find(program)?,
        args: vec![
            argument("--config"),
            run.dir.config().into(),
            argument("--run"),
            run.dir.root().into(),
            argument("--set"),
            argument(&format!("stage={}", stage.name)),
        ],
        ranks,
        mpirun: (ranks > 1).then(mpirun).transpose()?,
        environment: environment(settings)?,
        output: Output::Inherit,
    })
}

/// `$EQUIPOISE_MPIRUN`, or the first `mpirun` on the PATH.
///
/// # Errors
/// 78 if there is none.
pub fn mpirun() -> Result<PathBuf> {
    if let Some(chosen) = std::env::var_os("EQUIPOISE_MPIRUN").filter(|path| !path.is_empty()) {
        let chosen = PathBuf::from(chosen);
        ensure!(chosen.is_file(), Config, "EQUIPOISE_MPIRUN={}: there is no such file", chosen.display());
        return Ok(chosen);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("mpirun")).find(|path| path.is_file());
    let missing = || Error::config("no mpirun on the PATH: load an MPI module, or set run.ranks=1");
    found.ok_or_else(|| missing().next("equipoise doctor"))
}

/// One line per stage.
struct Show<'a> {
    run: &'a Run,
    format: Format,
}

impl Show<'_> {
    fn line(&self, stage: &Stage, state: &str, seconds: Option<f64>, message: Option<&str>) {
        if self.format == Format::Json {
            output::json(
                &json!({ "stage": stage.name, "state": state, "seconds": seconds, "message": message }),
            );
            return;
        }
        let colour = match state {
            "done" => Colour::Good,
            "failed" => Colour::Bad,
            "stopped" | "again" => Colour::Attention,
            _ => Colour::Faint,
        };
        // Why a stage has failed is told by whoever ends.
        let end = match seconds {
            Some(seconds) => format!("{:>12}", human_duration(seconds)),
            None => message.unwrap_or_default().to_string(),
        };
        let line = format!("{} {:<32} {end}", output::coloured(&format!("{state:<8}"), colour), stage.name);
        output::line(line.trim_end());
    }

    fn stopped(&self, stage: &Stage) -> ExitCode {
        self.line(stage, "stopped", None, None);
        if self.format == Format::Text {
            let root = shell_word(self.run.dir.root());
            output::line(format!("everything finished is committed; to go on: equipoise resume {root}"));
        }
        ExitCode::Requeue
    }

    fn finished(&self) {
        if self.format == Format::Text {
            output::line(format!("report: {}", self.run.dir.report().display()));
        }
    }
}

/// A path as one would type it.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=@%,:".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Stages that several ranks may share.
fn is_training(kind: Kind) -> bool {
    matches!(kind, Kind::Classifier | Kind::Arm | Kind::Diffusion)
}
