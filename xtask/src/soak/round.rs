//! One run of the recipe from submission to report.

use super::timeline::{self, Phases};
use anyhow::{Result, bail, ensure};
use equipoise_rundir::work::{self, Work};
use equipoise_rundir::{RealFs, RunDir};
use equipoise_testkit::slurm::{Cluster, Job};
use equipoise_testkit::tree::Found;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two looks at what is alive.
const INTERVAL: Duration = Duration::from_millis(100);
/// Between two questions to Slurm: each starts a process, on the processors that the ranks need.
const ASK: Duration = Duration::from_secs(1);
/// Jobs that queue themselves again start sooner; the others, of lost nodes, would wait for two minutes.
const DELAY: Duration = Duration::from_secs(25);
/// A round that gets nowhere for so long hangs: far beyond the watchdog, Slurm's timers, and a slow machine.
const HANG: Duration = Duration::from_secs(300);
/// Images of each class, and steps of one arm, for each unit of work.
const IMAGES: u64 = 100;
const STEPS: u64 = 900;
/// Work in sampling and training that events hit; a preempted job waits in the queue, where nothing of it is alive.
const SETTINGS: [&str; 8] = [
    "sets.feedback.sampler.steps=24",
    "checkpoint.every_steps=25",
    "slurm.nodes=2",
    "slurm.mem='0'",
    "slurm.time='30'",
    "slurm.requeue_delay=5",
    "slurm.start_timeout=30",
    "slurm.partition=low",
];

/// What a look has found.
pub struct Seen {
    /// The report is there.
    pub complete: bool,
    /// Live ranks.
    pub ranks: Vec<Found>,
}

/// How much there is to do, and by how many.
#[derive(Clone, Copy)]
pub struct Size {
    /// Ranks of each step.
    pub ranks: usize,
    /// Units of work.
    pub work: u64,
}

/// A run on the cluster.
pub struct Round {
    run: PathBuf,
    binaries: PathBuf,
    size: Size,
    alive: Duration,
    last_look: Instant,
    last_question: Instant,
    /// A requeued job that waits for its time to come, and since when.
    waiting: Option<(u64, Instant)>,
    /// What the run has written, and since when that is all.
    progress: (u64, Instant),
}

impl Round {
    /// Submits it.
    pub fn start(cluster: &Cluster, binaries: &Path, number: usize, size: Size) -> Result<Self> {
        let now = Instant::now();
        let run = cluster.shared().join(format!("round-{number}"));
        let binaries = binaries.to_path_buf();
        let round = Self {
            run,
            binaries,
            size,
            alive: Duration::ZERO,
            last_look: now,
            last_question: now,
            waiting: None,
            progress: (0, now),
        };
        round.submit(cluster)?;
        Ok(round)
    }

    fn submit(&self, cluster: &Cluster) -> Result<()> {
        let home = crate::shell::root();
        let mut command = cluster.as_user(self.binaries.join("equipoise"));
        command.env("EQUIPOISE_HOME", &home).args(["submit", "--run"]).arg(&self.run);
        let Size { ranks, work } = self.size;
        let sized = [
            format!("run.ranks={ranks}"),
            format!("sets.feedback.plan.n={}", IMAGES * work),
            format!("arms.ce.steps={}", STEPS * work),
        ];
        for setting in SETTINGS.iter().copied().chain(sized.iter().map(String::as_str)) {
            command.args(["--set", setting]);
        }
        let output = command.arg(home.join("tests/recipes/tiny.toml")).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "equipoise submit: {}\n{said}", output.status);
        Ok(())
    }

    /// Waits a little, counts the time if the run was alive, and helps it on its legs.
    pub fn look(&mut self, cluster: &Cluster) -> Result<Seen> {
        std::thread::sleep(INTERVAL);
        let processes = cluster.user_processes();
        let passed = std::mem::replace(&mut self.last_look, Instant::now()).elapsed();
        if !processes.is_empty() {
            self.alive += passed;
        }
        let complete = self.run.join("report.html").exists();
        if !complete && self.last_question.elapsed() >= ASK {
            self.last_question = Instant::now();
            self.watch(cluster)?;
            self.help(cluster)?;
        }
        let ranks = processes.into_iter().filter(is_rank).collect();
        Ok(Seen { complete, ranks })
    }

    /// Submits what is missing once no job is left, and lets requeued jobs start.
    fn help(&mut self, cluster: &Cluster) -> Result<()> {
        let queued = cluster.as_user("squeue").args(["-h", "-u", "student", "-o", "%A %T %r"]).output()?;
        let queued = String::from_utf8_lossy(&queued.stdout).into_owned();
        if queued.trim().is_empty() && !self.run.join("report.html").exists() {
            // A killed rank ends the stage as an error, which no job repeats by itself: somebody looks, and resumes.
            self.submit(cluster)?;
        }
        let waiting = queued.lines().find(|line| line.contains("BeginTime"));
        let job = waiting.and_then(|line| line.split(' ').next()?.parse().ok());
        match (job, self.waiting) {
            (Some(job), Some((known, since))) if job == known => {
                if since.elapsed() > DELAY {
                    cluster.start_now(Job(job));
                }
            }
            (job, _) => self.waiting = job.map(|job| (job, Instant::now())),
        }
        Ok(())
    }

    fn watch(&mut self, cluster: &Cluster) -> Result<()> {
        let bytes = size_of(&self.run);
        if bytes != self.progress.0 {
            self.progress = (bytes, Instant::now());
        }
        if self.progress.1.elapsed() > HANG {
            bail!("nothing was written for {HANG:?}\n{}\n{}", cluster.logs(), self.run.display());
        }
        Ok(())
    }

    /// The job that is running.
    pub fn running_job(&self, cluster: &Cluster) -> Option<Job> {
        let mut command = cluster.as_user("squeue");
        let output = command.args(["-h", "-u", "student", "-t", "RUNNING", "-o", "%A"]).output().ok()?;
        String::from_utf8_lossy(&output.stdout).lines().next()?.trim().parse().ok().map(Job)
    }

    /// Seconds with any process of the run alive.
    pub fn alive(&self) -> Duration {
        self.alive
    }

    /// What the ranks have noted about their time.
    pub fn work(&self) -> Result<Work> {
        Ok(work::of_run(&RealFs, &RunDir::new(&self.run))?)
    }

    /// Where the rest of it went.
    pub fn phases(&self) -> Result<Phases> {
        timeline::of_run(&RunDir::new(&self.run))
    }

    /// Attempts of all stages.
    pub fn attempts(&self) -> usize {
        let stages = std::fs::read_dir(self.run.join("stages")).into_iter().flatten().flatten();
        let journals =
            stages.filter_map(|stage| std::fs::read_to_string(stage.path().join("journal.jsonl")).ok());
        journals.map(|journal| journal.matches("\"event\":\"attempt\"").count()).sum()
    }

    /// What must not depend on what happened.
    pub fn results(&self) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut found = BTreeMap::new();
        collect(&self.run, &self.run, &mut found)?;
        ensure!(found.keys().any(|path| path.starts_with("sets")), "no shards in {}", self.run.display());
        Ok(found)
    }

    /// Fails naming the files that differ; verifies the shards as a user would.
    pub fn require_same(&self, reference: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
        let verified = std::process::Command::new(self.binaries.join("equipoise"))
            .args(["shards", "verify", "--deep"])
            .arg(&self.run)
            .output()?;
        ensure!(verified.status.success(), "shards verify: {}", String::from_utf8_lossy(&verified.stderr));
        let results = self.results()?;
        ensure!(results.keys().eq(reference.keys()), "{}: other files", self.run.display());
        let differing: Vec<&PathBuf> = results
            .iter()
            .filter(|(path, bytes)| reference[*path] != **bytes)
            .map(|(path, _)| path)
            .collect();
        ensure!(differing.is_empty(), "{}: these differ: {differing:?}", self.run.display());
        Ok(())
    }
}

/// Not what started it: srun's command line ends in the rank's.
fn is_rank(found: &Found) -> bool {
    let program = found.command.split(' ').next().unwrap_or_default();
    found.command.contains("stage=") && program.contains("equipoise-")
}

fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size_of(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    for entry in std::fs::read_dir(folder)?.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            ensure!(name != ".parts", "unfinished batches were left in {}", folder.display());
            if !["lock", "logs", "ckpt"].contains(&name.as_str()) {
                collect(root, &path, found)?;
            }
        } else if name.ends_with(".h5")
            || ["model.safetensors", "results.json", "index.json"].contains(&&*name)
        {
            found.insert(path.strip_prefix(root)?.to_owned(), std::fs::read(&path)?);
        }
    }
    Ok(())
}
