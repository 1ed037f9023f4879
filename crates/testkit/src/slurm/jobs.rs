//! What happens to jobs: by their user, by other users, by the administrator.

use super::{Cluster, stdout};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// What Slurm says about a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobState {
    /// State, such as RUNNING.
    pub state: String,
    /// Why it waits or ended, such as BeginTime.
    pub reason: String,
    /// How often it was requeued.
    pub restarts: u32,
    /// Exit status of its script.
    pub exit: i32,
    /// Nodes that it runs on.
    pub nodes: String,
}

impl JobState {
    /// Whether it will never run again.
    pub fn is_over(&self) -> bool {
        !matches!(
            self.state.as_str(),
            "PENDING" | "RUNNING" | "COMPLETING" | "CONFIGURING" | "REQUEUED" | "SUSPENDED" | "PREEMPTED"
        )
    }
}

/// A job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job(pub u64);

impl Cluster {
    /// `sbatch ARGUMENTS SCRIPT` by the user.
    ///
    /// # Panics
    /// With what sbatch says if it refuses.
    pub fn submit(&self, arguments: &[&str], script: &Path) -> Job {
        let mut command = self.as_user("sbatch");
        command.arg("--parsable").args(arguments).arg(script);
        let output = succeed(command);
        Job(stdout(&output).trim().parse().unwrap_or_else(|_| panic!("sbatch said {output:?}")))
    }

    /// A job of another user with more right to the nodes: preempts what runs there, and holds them for `seconds`.
    ///
    /// # Panics
    /// As [`Cluster::submit`].
    pub fn preempt(&self, nodes: usize, seconds: u32) -> Job {
        let mut command = self.as_root("sbatch");
        command.args([
            "--parsable",
            "--partition=high",
            "--exclusive",
            "--job-name=urgent",
            "--output=/dev/null",
        ]);
        command.arg(format!("--nodes={nodes}")).arg("--wrap").arg(format!("sleep {seconds}"));
        let output = succeed(command);
        Job(stdout(&output).trim().parse().unwrap_or_else(|_| panic!("sbatch said {output:?}")))
    }

    /// What Slurm says about a job.
    ///
    /// # Panics
    /// If it says nothing.
    pub fn job(&self, job: Job) -> JobState {
        self.look_at(&job.0.to_string())
    }

    /// What Slurm says about a task of an array job.
    ///
    /// # Panics
    /// If it says nothing.
    pub fn task(&self, job: Job, task: usize) -> JobState {
        self.look_at(&format!("{}_{task}", job.0))
    }

    fn look_at(&self, name: &str) -> JobState {
        let mut command = self.as_user("scontrol");
        let output = succeed_with(command.args(["-o", "show", "job", name]));
        let text = stdout(&output);
        let value = |key: &str| {
            let pair = text.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            pair.unwrap_or_default().to_string()
        };
        JobState {
            state: value("JobState"),
            reason: value("Reason"),
            restarts: value("Restarts").parse().unwrap_or(0),
            exit: value("ExitCode").split(':').next().and_then(|code| code.parse().ok()).unwrap_or(-1),
            nodes: value("NodeList"),
        }
    }

    /// Waits until Slurm says what `accept` wants to hear.
    ///
    /// # Panics
    /// With what it says, and the daemons' logs, if it does not within `bound`.
    pub fn wait_for(
        &self,
        job: Job,
        what: &str,
        bound: Duration,
        accept: impl Fn(&JobState) -> bool,
    ) -> JobState {
        let start = Instant::now();
        loop {
            let state = self.job(job);
            if accept(&state) {
                return state;
            }
            if start.elapsed() > bound {
                panic!("job {}: {what}: not within {bound:?}; {state:?}\n{}", job.0, self.logs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// `scontrol requeue`, by the user.
    ///
    /// # Panics
    /// If Slurm refuses.
    pub fn requeue(&self, job: Job) {
        succeed_with(self.as_user("scontrol").args(["requeue", &job.0.to_string()]));
    }

    /// `scontrol requeue` of one task of an array, by the user.
    ///
    /// # Panics
    /// If Slurm refuses.
    pub fn requeue_task(&self, job: Job, task: usize) {
        succeed_with(self.as_user("scontrol").args(["requeue", &format!("{}_{task}", job.0)]));
    }

    /// `scancel --batch --signal`, by the user: the batch shell gets it, the steps do not, as with `--signal=B:...`.
    ///
    /// # Panics
    /// If Slurm refuses.
    pub fn signal_shell(&self, job: Job, signal: &str) {
        succeed_with(self.as_user("scancel").args(["--batch", "--signal", signal, &job.0.to_string()]));
    }

    /// Sets how many seconds Slurm waits for a silent node before it takes it for lost, by the administrator.
    ///
    /// # Panics
    /// If Slurm refuses, or its configuration cannot be rewritten.
    #[allow(clippy::disallowed_methods)]
    pub fn set_slurmd_timeout(&self, seconds: u32) {
        let path = self.base().join("etc/slurm.conf");
        let rewrite = || {
            let text = std::fs::read_to_string(&path)?;
            let line = |line: &str| match line.starts_with("SlurmdTimeout=") {
                true => format!("SlurmdTimeout={seconds}\n"),
                false => format!("{line}\n"),
            };
            std::fs::write(&path, text.lines().map(line).collect::<String>())
        };
        rewrite().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        succeed_with(self.as_root("scontrol").arg("reconfigure"));
    }

    /// Lets a requeued job start without waiting for its time, by the user.
    pub fn start_now(&self, job: Job) {
        // It may have started by itself.
        let _ =
            self.as_user("scontrol").args(["update", &format!("jobid={}", job.0), "starttime=now"]).output();
    }

    /// As [`Cluster::start_now`], for a task of an array.
    pub fn start_now_task(&self, job: Job, task: usize) {
        let name = format!("jobid={}_{task}", job.0);
        // It may be running or over.
        let _ = self.as_user("scontrol").args(["update", &name, "starttime=now"]).output();
    }

    /// `scancel`, by the administrator, who may end anybody's job.
    ///
    /// # Panics
    /// If Slurm refuses.
    pub fn cancel(&self, job: Job) {
        succeed_with(self.as_root("scancel").arg(job.0.to_string()));
    }
}

/// Runs a command to its end.
fn succeed(mut command: Command) -> Output {
    succeed_with(&mut command)
}

fn succeed_with(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    output
}
