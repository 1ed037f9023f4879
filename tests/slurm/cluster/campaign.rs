//! A run directory on a cluster, and what is asked of it between the events.

use crate::support::{PATIENCE, assert_same, copy_without, results};
use equipoise_testkit::slurm::{Cluster, Job, JobState, Options};
use equipoise_testkit::{TempRun, tree, wait_until};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PMIX_LEAVES: Duration = Duration::from_secs(5);

/// What is run.
#[derive(Clone, Copy)]
pub struct Work {
    /// Recipe, in the repository.
    pub recipe: &'static str,
    /// Further settings, the same for reference and cluster.
    pub settings: &'static [&'static str],
    /// Images of a shard.
    pub shard: u64,
}

pub struct Campaign {
    pub cluster: Cluster,
    work: Work,
    reference: TempRun,
    run: PathBuf,
    scenario: usize,
}

impl Campaign {
    /// `reference` holds a finished, uninterrupted `run` of the same work.
    pub fn new(work: Work, reference: TempRun, options: Options) -> Self {
        let cluster = Cluster::boot(options);
        Self { cluster, work, reference, run: PathBuf::new(), scenario: 0 }
    }

    /// A fresh copy of the reference run, without `stage` and what depends on all stages.
    pub fn begin(&mut self, name: &str, stage: &str) {
        println!("--- {name}");
        let downstream = ["evaluate", "metrics", "report"];
        let depends = |name: &str| {
            let embeds = name.starts_with("embed-");
            let follows = downstream.contains(&name) || name == "train.feedback.k0.s0" || name == "grid";
            name == stage || embeds || follows
        };
        let copy = copy_without(&self.reference, depends);
        let _ = std::fs::remove_file(copy.join("run/report.html"));
        self.scenario += 1;
        self.run = self.cluster.shared().join(format!("run{}", self.scenario));
        let moved = std::process::Command::new("cp").arg("-a").arg(copy.join("run")).arg(&self.run).status();
        assert!(moved.unwrap().success());
        self.cluster.give_to_user(&self.run);
    }

    /// `equipoise submit` by the user, with further settings; the job of `stage`, which is missing so far.
    pub fn submit(&self, stage: &str, partition: &str, settings: &[&str]) -> Job {
        let home = env!("CARGO_MANIFEST_DIR");
        let mut command = self.cluster.as_user(env!("CARGO_BIN_EXE_equipoise"));
        command.env("EQUIPOISE_HOME", home).args(["submit", "--output=json", "--run"]).arg(&self.run);
        let partition = format!("slurm.partition={partition}");
        let common =
            ["slurm.nodes=2", "run.ranks=2", "slurm.mem='0'", "slurm.requeue_delay=5", "slurm.time='10'"];
        for set in self.work.settings.iter().chain(&common).chain(&[partition.as_str()]).chain(settings) {
            command.args(["--set", set]);
        }
        let output = command.arg(format!("{home}/{}", self.work.recipe)).output().unwrap();
        let said = format!(
            "{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "equipoise submit: {}\n{said}", output.status);
        let placed: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
        let jobs = placed["jobs"].as_array().unwrap();
        let job = jobs
            .iter()
            .find(|job| job["stage"] == stage)
            .unwrap_or_else(|| panic!("no job of {stage}: {said}"));
        Job(job["job"].as_str().unwrap().parse().unwrap())
    }

    fn stage(&self, stage: &str) -> PathBuf {
        self.run.join("stages").join(stage)
    }

    /// What the jobs have printed.
    pub fn output(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(self.run.join("slurm")).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(".log") {
                text += &format!("--- {}\n", entry.path().display());
                text += &std::fs::read_to_string(entry.path()).unwrap_or_default();
            }
        }
        text
    }

    pub fn journal(&self, stage: &str) -> Vec<Value> {
        lines(&self.stage(stage).join("journal.jsonl"))
    }

    /// Every row of `metrics.jsonl`, those of steps that were made again included.
    pub fn metrics(&self, stage: &str) -> Vec<Value> {
        lines(&self.stage(stage).join("metrics.jsonl"))
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

    /// What the batch script has noted at the end of the start that Slurm gave this restart count.
    pub fn wait_for_end(&self, stage: &str, restart: u32) -> Value {
        let mut found = None;
        wait_until_or_tell(
            &format!("the end of start {restart} of {stage}"),
            || self.tell(&self.stage(stage)),
            || {
                let noted = lines(&self.run.join("slurm").join(format!("{stage}.jsonl")));
                let is_it = |event: &Value| event["event"] == "end" && event["restart"] == restart;
                found = noted.into_iter().find(is_it);
                found.is_some()
            },
        );
        found.unwrap_or_default()
    }

    /// Waits until an attempt holds the lease; the journal up to then.
    pub fn wait_until_begun(&self, stage: &str, attempt: u64) -> Vec<Value> {
        let mut journal = Vec::new();
        wait_until_or_tell(
            &format!("{stage} begins attempt {attempt}"),
            || self.tell(&self.stage(stage)),
            || {
                journal = self.journal(stage);
                journal.iter().any(|event| event["event"] == "attempt" && event["attempt"] == attempt)
            },
        );
        journal
    }

    /// What somebody who finds a test failed wants to read.
    fn tell(&self, dir: &Path) -> String {
        let (status, outcome) = (json(&dir.join("status.json")), json(&dir.join("outcome.json")));
        format!("{status}\n{outcome}\n{}{}", self.output(), self.cluster.logs())
    }

    /// How the last attempt of a stage ended.
    pub fn outcome(&self, stage: &str) -> Value {
        json(&self.stage(stage).join("outcome.json"))
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

    /// Ends all ranks at once and without a word, as a power cut would. Whoever started them is stopped before, so that
    /// the job is still there for Slurm to take away: SIGCONT, which it sends with its TERM, wakes them.
    pub fn kill_ranks_unheard(&self) {
        let (ranks, others): (Vec<_>, Vec<_>) =
            self.cluster.user_processes().into_iter().partition(|found| is_rank(&found.command));
        assert!(!ranks.is_empty(), "no rank is alive\n{}", self.output());
        others.iter().for_each(|found| tree::send(found.pid, libc::SIGSTOP));
        ranks.iter().for_each(|found| tree::send(found.pid, libc::SIGKILL));
    }

    /// Live ranks on a node.
    pub fn ranks_on(&self, node: usize) -> Vec<tree::Found> {
        let processes = self.cluster.processes(node).into_iter();
        processes.filter(|found| is_rank(&found.command)).collect()
    }

    /// The folder of the run.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Seconds from the last TERM that the controller sent to the steps of a job until `wall`, in seconds since 1970;
    /// none if it sent none. The controller logs the time of day.
    pub fn since_signal(&self, job: Job, wall: f64) -> Option<f64> {
        let log = self.cluster.shared().with_file_name("log").join("slurmctld.log");
        let log = std::fs::read_to_string(log).unwrap();
        let signal = format!("job_signal: 15 of running JobId={} ", job.0);
        let line = log.lines().rfind(|line| line.contains(&signal))?;
        let clock = line.split(['T', ']']).nth(1)?;
        let sent = clock.split(':').try_fold(0., |sum, part| Some(sum * 60. + part.parse::<f64>().ok()?))?;
        Some(wall.rem_euclid(86400.) - sent)
    }

    /// Waits until Slurm has put a job back into the queue.
    pub fn requeued(&self, job: Job, restarts: u32) {
        let back = |state: &equipoise_testkit::slurm::JobState| state.restarts >= restarts;
        self.cluster.wait_for(job, "requeued", PATIENCE, back);
    }

    /// Lets a requeued job start that could not see to it itself. Not at once: Slurm's PMIx needs some seconds to leave,
    /// and until then `srun --mpi=pmix` of the same job fails ("Cannot bind() UNIX socket").
    pub fn start_again(&self, job: Job) {
        std::thread::sleep(PMIX_LEAVES);
        self.cluster.start_now(job);
    }

    pub fn wait_until_over(&self, job: Job) {
        self.cluster.wait_for(job, "over", PATIENCE, |state| state.is_over());
    }

    /// Waits until Slurm has no job of the run any more.
    pub fn wait_until_none_is_left(&self) {
        let queued = || self.cluster.as_user("squeue").args(["-h", "-u", "student"]).output().unwrap();
        wait_until_or_tell(
            "no job is left",
            || self.tell(&self.run),
            || {
                let queued = queued();
                queued.status.success() && queued.stdout.is_empty()
            },
        );
    }

    /// Cancels a job; those that wait for it go with it.
    pub fn cancel(&self, job: Job) {
        self.cluster.cancel(job);
        self.wait_until_none_is_left();
    }

    /// Waits for the last job, and compares the run with the reference.
    pub fn finish_and_compare(&self, what: &str) {
        self.wait_until_none_is_left();
        assert!(self.run.join("report.html").exists(), "the run is not complete\n{}", self.output());
        assert_same(&results(&self.reference.join("run")), &results(&self.run), what);
    }

    /// Waits until no task of an array is left, and that each ended well.
    pub fn wait_until_tasks_are_over(&self, job: Job, tasks: usize) {
        let over = || {
            let states: Vec<JobState> = (0..tasks).map(|task| self.cluster.task(job, task)).collect();
            // Only those that wait: the controller has enough to do.
            for (task, _) in states.iter().enumerate().filter(|(_, state)| state.state == "PENDING") {
                self.cluster.start_now_task(job, task);
            }
            states.iter().all(JobState::is_over)
        };
        wait_until("all tasks are over", PATIENCE, over);
        for task in 0..tasks {
            let state = self.cluster.task(job, task);
            assert_eq!(state.state, "COMPLETED", "task {task}: {state:?}\n{}", self.output());
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
        // The first shard makes the folder.
        for class in std::fs::read_dir(set)
            .into_iter()
            .flatten()
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
                total += (count.parse::<u64>().unwrap() - first).min(self.work.shard);
            }
        }
        total
    }
}

/// Not what started it: the command line of srun or mpirun ends in the rank's.
fn is_rank(command: &str) -> bool {
    let program = command.split(' ').next().unwrap_or_default();
    command.contains("stage=") && program.contains("equipoise-")
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
    // The last line may be in the middle of being written.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
