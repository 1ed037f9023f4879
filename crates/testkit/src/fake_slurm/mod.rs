//! Slurm's commands as small shell scripts on the PATH: for what real daemons cannot be made to say.
//!
//! The state is a folder: one folder per job in `jobs/`, what was called in `calls`, and in `say/` what a command is to say
//! instead of its answer. Tests read and write these files.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "what fails here fails a test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const COMMANDS: [(&str, &str); 7] = [
    ("sbatch", include_str!("sbatch.sh")),
    ("squeue", include_str!("squeue.sh")),
    ("scontrol", include_str!("scontrol.sh")),
    ("scancel", include_str!("scancel.sh")),
    ("sacct", include_str!("sacct.sh")),
    ("sinfo", include_str!("sinfo.sh")),
    ("srun", include_str!("srun.sh")),
];

/// A Slurm without daemons.
pub struct FakeSlurm {
    folder: TempDir,
}

impl Default for FakeSlurm {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeSlurm {
    /// An empty cluster.
    pub fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let fake = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["bin", "jobs", "say"] {
            std::fs::create_dir(fake.path(name)).unwrap();
        }
        for (name, script) in COMMANDS {
            let path = fake.path("bin").join(name);
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts the commands first on the PATH of `command`.
    pub fn equip(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.path("bin").display()));
        command.env("FAKE_SLURM", self.folder.path());
    }

    /// Lets `command` (`sbatch`, or `scontrol-requeue`) say this on standard error and fail, so many times, from now on.
    /// With `after` it does its work first: the request was carried out, but the answer got lost.
    pub fn fail(&self, command: &str, times: u32, text: &str, after: bool) {
        let dir = self.path("say").join(command);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("text"), text).unwrap();
        std::fs::write(dir.join("times"), times.to_string()).unwrap();
        std::fs::write(dir.join("after"), if after { "yes" } else { "no" }).unwrap();
    }

    /// Lets a command (`squeue`, `sinfo`, `sacct`; `config` and `partition` of `scontrol show`) say this on standard output,
    /// and nothing else, from now on.
    pub fn answer(&self, command: &str, text: &str) {
        let dir = self.path("say").join(command);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("out"), text).unwrap();
    }

    /// Every call so far: the command and its arguments.
    pub fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_string).collect()
    }

    /// The calls of one command.
    pub fn calls_of(&self, command: &str) -> Vec<String> {
        let prefix = format!("{command} ");
        self.calls().into_iter().filter(|call| call.starts_with(&prefix)).collect()
    }

    /// The ids of all jobs.
    pub fn jobs(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("jobs")).unwrap().flatten();
        let mut ids: Vec<u64> =
            entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        ids.sort_unstable();
        ids.iter().map(u64::to_string).collect()
    }

    /// A property of a job: `name`, `state`, `reason`, `restarts`, `script`, `args`, `env`, `dir`, `start`,
    /// `excluded`.
    pub fn get(&self, job: &str, property: &str) -> String {
        std::fs::read_to_string(self.job(job).join(property)).unwrap_or_default().trim().to_string()
    }

    /// Changes a property of a job.
    pub fn set(&self, job: &str, property: &str, value: &str) {
        std::fs::create_dir_all(self.job(job)).unwrap();
        std::fs::write(self.job(job).join(property), value).unwrap();
    }

    /// Slurm forgets a job.
    pub fn forget(&self, job: &str) {
        std::fs::remove_dir_all(self.job(job)).unwrap();
    }

    fn job(&self, job: &str) -> PathBuf {
        self.path("jobs").join(job)
    }

    /// Runs the script of a job here, as slurmd would: in its directory, with its variables; its state follows.
    pub fn start(&self, job: &str) -> Output {
        self.start_with(job, |_| {})
    }

    /// [`FakeSlurm::start`] with changes to the command.
    pub fn start_with(&self, job: &str, change: impl FnOnce(&mut Command)) -> Output {
        let restarts = self.get(job, "restarts");
        self.set(job, "state", "RUNNING");
        let mut command = Command::new("bash");
        command.arg(self.job(job).join("script")).current_dir(self.get(job, "dir"));
        command.env("SLURM_JOB_ID", job).env("SLURM_JOB_NODELIST", "n1").env("SLURM_JOB_NUM_NODES", "1");
        command.env("SLURM_JOB_PARTITION", "low");
        match restarts.as_str() {
            "0" => command.env_remove("SLURM_RESTART_COUNT"),
            count => command.env("SLURM_RESTART_COUNT", count),
        };
        self.equip(&mut command);
        change(&mut command);
        let output = command.output().unwrap();
        if self.get(job, "state") == "RUNNING" {
            self.set(job, "state", if output.status.success() { "COMPLETED" } else { "FAILED" });
        }
        output
    }

    /// The folder of the state, for a test's own scripts.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
