//! Starts stages for a few seconds each, as `equipoise run` starts them.

use crate::runner::{Run, launch};
use crate::steps;
use equipoise_base::{Error, ExitCode, Result};
use equipoise_comm::launch::{Asked, Launcher};
use equipoise_config::Stage as Work;
use equipoise_report::pace::Rehearsal;
use equipoise_rundir::{RealFs, Vfs, commit_bytes, create_dirs, read_json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How a rehearsal ended.
pub enum Rehearsed {
    /// With numbers.
    Done(Rehearsal),
    /// There was nothing to do, such as a set that needs no image.
    Nothing,
    /// On request.
    Stopped,
}

/// Where rehearsals happen: a scratch folder beside the file that they are for, removed at the end.
pub struct Stage<'a> {
    run: &'a Run,
    launcher: Launcher,
    folder: PathBuf,
    seconds: f64,
}

impl<'a> Stage<'a> {
    /// Prepares the scratch folder beside `out`; of each stage `seconds` are measured.
    ///
    /// # Errors
    /// 74 if nothing can be written there.
    pub fn new(run: &'a Run, out: &Path, seconds: f64) -> Result<Self> {
        let launcher = Launcher::new()?;
        let folder = out.with_file_name(format!(".calibration-{}", std::process::id()));
        let stage = Self { run, launcher, folder, seconds };
        create_dirs(&RealFs, &stage.folder)?;
        commit_bytes(&RealFs, &stage.config(), run.resolved.to_toml().as_bytes(), None)?;
        Ok(stage)
    }

    /// Seconds measured of each kind of work.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    /// Rehearses a stage with more settings on top.
    ///
    /// # Errors
    /// What the step ended with.
    pub fn run(&mut self, stage: &Work, sets: &[String]) -> Result<Rehearsed> {
        if self.launcher.asked() != Asked::Nothing {
            return Ok(Rehearsed::Stopped);
        }
        let Some(program) = stage.kind.program() else {
            return Err(Error::new(ExitCode::Bug, format!("stage {} has no program", stage.name)));
        };
        steps::of_this_build(program)?;
        let file = self.folder.join("rehearsal.json");
        let mut launch = launch(self.run, stage, program)?;
        let replaced = launch.args.iter().position(|arg| arg.as_os_str() == self.run.dir.config());
        if let Some(at) = replaced {
            launch.args[at] = self.config().into();
        }
        for set in sets {
            launch.args.extend(["--set".into(), set.into()]);
        }
        launch.args.extend(["--rehearse".into(), (&file).into()]);
        launch.args.extend(["--rehearse-seconds".into(), self.seconds.to_string().into()]);
        let start = Instant::now();
        let ended = self.launcher.run(launch)?;
        let took = start.elapsed().as_secs_f64();
        if ended.asked != Asked::Nothing {
            return Ok(Rehearsed::Stopped);
        }
        let rehearsal: Option<Rehearsal> = read_json(&RealFs, &file)?;
        let _ = RealFs.remove_file(&file);
        if let Some(mut rehearsal) = rehearsal.filter(|_| ended.status == Some(0)) {
            // As a user waits for it: with the start and the end of mpirun.
            let pace = &mut rehearsal.pace;
            pace.overhead += (took - pace.total).max(0.0);
            return Ok(Rehearsed::Done(rehearsal));
        }
        if ended.status == Some(0) {
            return Ok(Rehearsed::Nothing);
        }
        let code = ended.status.and_then(ExitCode::from_status).filter(|code| *code != ExitCode::Done);
        let how = match (ended.signal, ended.status) {
            (Some(signal), _) => format!("was killed by signal {signal}; is there too little memory?"),
            (None, status) => format!("ended with status {}; see above", status.unwrap_or_default()),
        };
        Err(Error::new(code.unwrap_or(ExitCode::Bug), format!("stage {}: its rehearsal {how}", stage.name)))
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        let _ = RealFs.remove_dir_all(&self.folder);
    }
}
