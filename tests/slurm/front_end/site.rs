//! A run, a Slurm, and a user between them.

use crate::util::{Dir, RECIPE, Ran, images};
use equipoise_testkit::FakeSlurm;
use serde_json::Value;
use std::process::{Command, Output};

/// A folder with the small recipe, and a Slurm.
pub struct Site {
    pub dir: Dir,
    pub slurm: FakeSlurm,
}

/// Stages of the small recipe, the report included.
pub const STAGES: usize = 10;

impl Site {
    pub fn new() -> Self {
        Self::with("")
    }

    /// A site with more keys in its `[slurm]`.
    pub fn with(keys: &str) -> Self {
        let site = Self { dir: Dir::new(), slurm: FakeSlurm::new() };
        images(&site.dir);
        site.dir.write("my.toml", &format!("{RECIPE}\n[slurm]\n{keys}\n"));
        site
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.dir.command(args);
        self.slurm.equip(&mut command);
        // Whoever runs the tests may do so in a job.
        command.env_remove("SLURM_JOB_ID").env_remove("SLURM_JOBID");
        command
    }

    pub fn equipoise(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    pub fn submit(&self) -> Ran {
        self.equipoise(&["submit", "my.toml", "--run", "run"])
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.equipoise(&[args, &["--output", "json"]].concat()).ok()).unwrap()
    }

    /// The job of a stage.
    pub fn job(&self, stage: &str) -> String {
        let prefix = format!("small.{stage}-");
        let jobs = self.slurm.jobs();
        jobs.into_iter().rfind(|job| self.slurm.get(job, "name").starts_with(&prefix)).unwrap()
    }

    /// Runs the script of a job with a step that leaves this outcome (none: leaves nothing) and ends with this status.
    pub fn attempt(&self, stage: &str, outcome: Option<(&str, u64)>, status: i32) -> Output {
        self.attempt_that(stage, outcome, status, "")
    }

    /// Shell command by which a step puts its attempt on record.
    pub fn begins(&self, stage: &str) -> String {
        let journal = self.dir.path().join("run/stages").join(stage).join("journal.jsonl");
        format!(r#"echo '{{"event":"attempt","attempt":1}}' >> '{}'"#, journal.display())
    }

    /// [`Site::attempt`] with something that happens while the step runs.
    pub fn attempt_that(
        &self,
        stage: &str,
        outcome: Option<(&str, u64)>,
        status: i32,
        meanwhile: &str,
    ) -> Output {
        let dir = self.dir.path().join("run/stages").join(stage);
        std::fs::create_dir_all(&dir).unwrap();
        let write = outcome.map_or(String::new(), |(name, made)| {
            format!(
                r#"printf '{{"code":{status},"name":"{name}","message":"m","next":null,"rank":0,"attempt":1,"host":"n1","wall":%s,"made":{made}}}' "$(date +%s.%N)" > '{}/outcome.json'"#,
                dir.display()
            )
        });
        let job = self.job(stage);
        let step = format!("{write}\n{meanwhile}\nexit {status}");
        self.slurm.start_with(&job, |command| {
            command.env("FAKE_SRUN", step).env("EQUIPOISE_HOME", crate::util::REPOSITORY);
            command.env("JOB", self.slurm.folder().join("jobs").join(&job));
        })
    }
}
