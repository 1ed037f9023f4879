//! One run of the recipe from submission to report.

use anyhow::{Context, Result, bail, ensure};
use equipoise_testkit::slurm::{Cluster, Job};
use equipoise_testkit::tree::Found;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(200);
/// A round that gets nowhere for so long hangs: far beyond the watchdog, Slurm's timers, and a slow machine.
const HANG: Duration = Duration::from_secs(300);
/// Enough work in sampling and training that events hit it.
const SETTINGS: [&str; 9] = [
    "sets.feedback.plan.n=100",
    "sets.feedback.sampler.steps=24",
    "arms.ce.steps=900",
    "checkpoint.every_steps=25",
    "slurm.nodes=2",
    "slurm.mem='0'",
    "slurm.time='30'",
    "slurm.requeue_delay=5",
    "slurm.partition=low",
];

/// A run on the cluster.
pub struct Round {
    run: PathBuf,
    binaries: PathBuf,
    ranks: usize,
    alive: Duration,
    /// Processor time of every rank that was seen, in clock ticks.
    ticks: BTreeMap<i32, u64>,
    last_look: Instant,
    /// What the run has written, and since when that is all.
    progress: (u64, Instant),
}

impl Round {
    /// Submits it.
    pub fn start(cluster: &Cluster, binaries: &Path, number: usize, ranks: usize) -> Result<Self> {
        let now = Instant::now();
        let run = cluster.shared().join(format!("round-{number}"));
        let binaries = binaries.to_path_buf();
        let round = Self {
            run,
            binaries,
            ranks,
            alive: Duration::ZERO,
            ticks: BTreeMap::new(),
            last_look: now,
            progress: (0, now),
        };
        round.submit(cluster)?;
        Ok(round)
    }

    fn submit(&self, cluster: &Cluster) -> Result<()> {
        let home = crate::shell::root();
        let mut command = cluster.as_user(self.binaries.join("equipoise"));
        command.env("EQUIPOISE_HOME", &home).args(["submit", "--run"]).arg(&self.run);
        let ranks = format!("run.ranks={}", self.ranks);
        for setting in SETTINGS.iter().copied().chain([ranks.as_str()]) {
            command.args(["--set", setting]);
        }
        let output = command.arg(home.join("tests/recipes/tiny.toml")).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "equipoise submit: {}\n{said}", output.status);
        Ok(())
    }

    /// Waits a little, counts the time if the run was alive, and helps it on its legs; true when it is complete.
    pub fn look(&mut self, cluster: &Cluster) -> Result<bool> {
        std::thread::sleep(INTERVAL);
        let passed = std::mem::replace(&mut self.last_look, Instant::now());
        let ranks = self.ranks(cluster);
        if !ranks.is_empty() {
            self.alive += passed.elapsed();
        }
        for rank in ranks {
            self.ticks.extend(ticks_of(rank.pid).map(|ticks| (rank.pid, ticks)));
        }
        if self.run.join("report.html").exists() {
            return Ok(true);
        }
        self.watch(cluster)?;
        let queued = cluster.as_user("squeue").args(["-h", "-u", "student", "-o", "%A %T %r"]).output()?;
        let queued = String::from_utf8_lossy(&queued.stdout).into_owned();
        if queued.trim().is_empty() {
            // A killed rank ends the stage as an error, which no job repeats by itself: somebody looks, and resumes.
            self.submit(cluster)?;
        }
        for line in queued.lines().filter(|line| line.contains("BeginTime")) {
            let job = line.split(' ').next().and_then(|id| id.parse().ok()).context("squeue")?;
            cluster.start_now(Job(job));
        }
        Ok(false)
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

    /// The live ranks of the round.
    pub fn ranks(&self, cluster: &Cluster) -> Vec<Found> {
        let run = self.run.display().to_string();
        let is_rank = |found: &Found| found.command.contains("stage=") && found.command.contains(&run);
        let launcher = |found: &Found| found.command.starts_with("srun") || found.command.contains("/srun ");
        cluster
            .matching("equipoise-")
            .into_iter()
            .filter(|found| is_rank(found) && !launcher(found))
            .collect()
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

    /// Processor time of all ranks, in seconds.
    pub fn processor(&self) -> f64 {
        // SAFETY: sysconf has no memory preconditions.
        self.ticks.values().sum::<u64>() as f64 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
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

/// Fields 14 and 15 of `/proc/PID/stat`: processor time of a process, user and system.
fn ticks_of(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
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
