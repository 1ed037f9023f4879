//! A run directory on a cluster, and what is asked of it between the events.

use crate::support::{PATIENCE, assert_same, copy_without, equipoise, finish, results};
use equipoise_comm::environment::{CpuCapability, pinned};
use equipoise_testkit::slurm::{Cluster, Job, Options};
use equipoise_testkit::{TempRun, wait_until};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// How a step is spread.
#[derive(Clone, Copy)]
pub struct Shape {
    pub nodes: usize,
    pub ranks: usize,
}

pub struct Campaign {
    pub cluster: Cluster,
    reference: TempRun,
    run: PathBuf,
    scenario: usize,
}

impl Campaign {
    pub fn new(reference: TempRun, options: Options) -> Self {
        let cluster = Cluster::boot(options);
        Self { cluster, reference, run: PathBuf::new(), scenario: 0 }
    }

    /// A fresh copy of the reference run, without `stage` and what depends on all stages.
    pub fn begin(&mut self, name: &str, stage: &str) {
        println!("--- {name}");
        let downstream = ["evaluate", "metrics", "report"];
        let depends =
            |name: &str| name == stage || downstream.contains(&name) || name == "train.feedback.k0.s0";
        let copy = copy_without(&self.reference, depends);
        self.scenario += 1;
        self.run = self.cluster.shared().join(format!("run{}", self.scenario));
        let moved = std::process::Command::new("cp").arg("-a").arg(copy.join("run")).arg(&self.run).status();
        assert!(moved.unwrap().success());
        self.cluster.give_to_user(&self.run);
    }

    pub fn submit(&self, stage: &str, partition: &str, shape: Shape) -> Job {
        self.submit_after(stage, partition, shape, &[], ":")
    }

    /// As [`Campaign::submit`], with more options of sbatch and something to do first.
    pub fn submit_after(
        &self,
        stage: &str,
        partition: &str,
        shape: Shape,
        options: &[&str],
        first: &str,
    ) -> Job {
        self.submit_with(stage, partition, shape, options, first, "pmix")
    }

    pub fn submit_with(
        &self,
        stage: &str,
        partition: &str,
        shape: Shape,
        options: &[&str],
        first: &str,
        mpi: &str,
    ) -> Job {
        let exports: String = pinned(1, Some(CpuCapability::here()))
            .into_iter()
            .filter(|(name, _)| !name.starts_with("OMPI_"))
            .map(|(name, value)| format!("export {name}={value}\n"))
            .collect();
        let program = if stage.starts_with("train") { "train" } else { "generate" };
        let program =
            Path::new(env!("CARGO_BIN_EXE_equipoise")).with_file_name(format!("equipoise-{program}"));
        let (program, run) = (program.display(), self.run.display());
        // As the script of `equipoise submit`, without its bookkeeping.
        let text = format!(
            "#!/bin/bash\n{exports}trap : TERM USR2\n{first}\n\
             EQUIPOISE_RANKS=$SLURM_NTASKS srun --kill-on-bad-exit=1 --mpi={mpi} {program} \\\n  \
             --config {run}/config.toml --run {run} --set stage={stage}\n\
             code=$?\n[ $code != 75 ] || scontrol requeue ${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}\n\
             exit $code\n"
        );
        let script = self.run.join(format!("{stage}.sh"));
        std::fs::write(&script, text).unwrap();
        let size = [
            format!("--nodes={}", shape.nodes),
            format!("--ntasks={}", shape.ranks),
            format!("--partition={partition}"),
            format!("--output={run}/job-%A.log"),
        ];
        let mut arguments = vec!["--requeue", "--open-mode=append", "--mem=0"];
        arguments.extend(size.iter().map(String::as_str));
        arguments.extend(options);
        self.cluster.submit(&arguments, &script)
    }

    fn stage(&self, stage: &str) -> PathBuf {
        self.run.join("stages").join(stage)
    }

    /// What the jobs have printed.
    pub fn output(&self, job: Job) -> String {
        std::fs::read_to_string(self.run.join(format!("job-{}.log", job.0))).unwrap_or_default()
    }

    pub fn journal(&self, stage: &str) -> Vec<Value> {
        lines(&self.stage(stage).join("journal.jsonl"))
    }

    pub fn task_journals(&self, stage: &str) -> Vec<Value> {
        let tasks = std::fs::read_dir(self.stage(stage).join("tasks")).unwrap().flatten();
        tasks.flat_map(|task| lines(&task.path().join("journal.jsonl"))).collect()
    }

    /// All log files of a stage.
    pub fn logs(&self, stage: &str) -> String {
        let mut text = String::new();
        for attempt in std::fs::read_dir(self.stage(stage).join("logs")).unwrap().flatten() {
            for rank in std::fs::read_dir(attempt.path()).unwrap().flatten() {
                text += &std::fs::read_to_string(rank.path()).unwrap_or_default();
            }
        }
        text
    }

    /// Waits until an attempt has got on by itself, with much left to do; how many units are done then.
    pub fn wait_until_at_work(&self, stage: &str, attempt: u64) -> u64 {
        self.wait_until_done_grows(&self.stage(stage), attempt)
    }

    pub fn wait_until_task_is_at_work(&self, stage: &str, task: usize) {
        self.wait_until_done_grows(&self.stage(stage).join(format!("tasks/{task}")), 1);
    }

    fn wait_until_done_grows(&self, dir: &Path, attempt: u64) -> u64 {
        let mut first = None;
        let mut now = (0, 0);
        let what = format!("{} at work in attempt {attempt}", dir.display());
        wait_until_or_tell(
            &what,
            || self.tell(dir),
            || {
                let status = json(&dir.join("status.json"));
                if status["attempt"] != attempt || status["state"] != "running" || status["rate"].is_null() {
                    return false;
                }
                now = (status["done"].as_u64().unwrap_or(0), status["total"].as_u64().unwrap_or(0));
                now.0 > *first.get_or_insert(now.0)
            },
        );
        assert!(
            now.0 * 10 < now.1 * 9,
            "{}: {} of {}: no time left for an event",
            dir.display(),
            now.0,
            now.1
        );
        now.0
    }

    /// What somebody who finds a test failed wants to read.
    fn tell(&self, dir: &Path) -> String {
        let mut text = format!("{}\n{}\n", json(&dir.join("status.json")), json(&dir.join("outcome.json")));
        for entry in std::fs::read_dir(&self.run).unwrap().flatten() {
            if entry.file_name().to_string_lossy().ends_with(".log") {
                text += &std::fs::read_to_string(entry.path()).unwrap_or_default();
            }
        }
        text + &self.cluster.logs()
    }

    /// How an attempt ended.
    pub fn wait_for_outcome(&self, stage: &str, attempt: u64) -> Value {
        let dir = self.stage(stage);
        let mut outcome = Value::Null;
        wait_until_or_tell(
            &format!("the outcome of attempt {attempt} of {stage}"),
            || self.tell(&dir),
            || {
                outcome = json(&dir.join("outcome.json"));
                outcome["attempt"] == attempt
            },
        );
        outcome
    }

    /// Waits until Slurm has put a job back into the queue.
    pub fn requeued(&self, job: Job, restarts: u32) {
        let back = |state: &equipoise_testkit::slurm::JobState| state.restarts >= restarts;
        self.cluster.wait_for(job, "requeued", PATIENCE, back);
    }

    pub fn wait_until_over(&self, job: Job) {
        self.cluster.wait_for(job, "over", PATIENCE, |state| state.is_over());
    }

    pub fn wait_until_completed(&self, job: Job) {
        let state = self.cluster.wait_for(job, "over", PATIENCE, |state| state.is_over());
        assert_eq!(state.state, "COMPLETED", "{state:?}\n{}", self.output(job));
    }

    /// Waits until no task of an array is left, and that each ended well.
    pub fn wait_until_tasks_are_over(&self, job: Job, tasks: usize) {
        let over = || {
            (0..tasks).all(|task| {
                self.cluster.start_now_task(job, task);
                self.cluster.task(job, task).is_over()
            })
        };
        wait_until("all tasks are over", PATIENCE, over);
        for task in 0..tasks {
            let state = self.cluster.task(job, task);
            assert_eq!(state.state, "COMPLETED", "task {task}: {state:?}\n{}", self.output(job));
        }
    }

    /// Images that the stage has to make.
    pub fn images(&self, stage: &str) -> u64 {
        json(&self.stage(stage).join("status.json"))["total"].as_u64().unwrap()
    }

    /// Images in shards that are complete: their names say how many.
    pub fn committed_images(&self, stage: &str) -> u64 {
        let set = self.run.join("sets").join(stage.trim_start_matches("generate."));
        let mut total = 0;
        for class in std::fs::read_dir(set)
            .unwrap()
            .flatten()
            .filter(|class| !class.file_name().to_string_lossy().starts_with('.'))
        {
            for shard in std::fs::read_dir(class.path()).into_iter().flatten().flatten() {
                let name = shard.file_name().to_string_lossy().into_owned();
                let Some(stem) = name.strip_suffix(".h5").filter(|stem| !stem.starts_with('.')) else {
                    continue;
                };
                let (first, count) = stem.rsplit_once("-of-").unwrap();
                let first: u64 = first.rsplit('-').next().unwrap().parse().unwrap();
                total += (count.parse::<u64>().unwrap() - first).min(crate::SHARD);
            }
        }
        total
    }

    /// Finishes the run here and compares it with the reference.
    pub fn compare(&self, what: &str) {
        finish(equipoise(&["resume", self.run.to_str().unwrap()]));
        assert_same(&results(&self.reference.join("run")), &results(&self.run), what);
    }
}

fn wait_until_or_tell(what: &str, tell: impl Fn() -> String, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}\n{}", tell());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn json(path: &Path) -> Value {
    std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
