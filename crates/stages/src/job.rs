//! The Slurm job that a step is part of, as its environment and, where that is silent, Slurm itself describe it.

use equipoise_base::clock::Clock;
use equipoise_rundir::lease::Owner;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long Slurm may take to answer. A controller that is busier must not keep a step from working.
const PATIENCE: Duration = Duration::from_secs(15);

/// One task of an array job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// From 0.
    pub index: usize,
    /// Tasks in the array.
    pub count: usize,
}

/// A Slurm job, or the lack of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// Job id; of the whole array in an array job.
    pub id: Option<String>,
    /// How often Slurm has restarted it, or this task of it.
    pub restart: u32,
    /// Which task of an array it is.
    pub task: Option<Task>,
    end_time: Option<String>,
}

impl Job {
    /// The job that this process runs in.
    pub fn here() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// `SLURM_RESTART_COUNT` is missing at the first start, `SLURM_JOB_END_TIME` before Slurm 23.02.
    fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| variable(name)?.parse::<usize>().ok();
        let task = || {
            let (id, first) = (number("SLURM_ARRAY_TASK_ID")?, number("SLURM_ARRAY_TASK_MIN").unwrap_or(0));
            Some(Task { index: id.checked_sub(first)?, count: number("SLURM_ARRAY_TASK_COUNT")?.max(1) })
        };
        Self {
            id: variable("SLURM_ARRAY_JOB_ID").or_else(|| variable("SLURM_JOB_ID")),
            restart: number("SLURM_RESTART_COUNT").and_then(|count| count.try_into().ok()).unwrap_or(0),
            task: task(),
            end_time: variable("SLURM_JOB_END_TIME"),
        }
    }

    /// As Slurm's commands take it: the id of an array means all its tasks.
    fn name(&self) -> Option<String> {
        let id = self.id.as_ref()?;
        Some(self.task.map_or_else(|| id.clone(), |task| format!("{id}_{}", task.index)))
    }

    /// Time until Slurm ends the job; none without a limit, or if Slurm does not answer.
    pub fn time_left(&self, clock: &dyn Clock) -> Option<Duration> {
        if let Some(end) = self.end_time.as_ref().and_then(|text| text.trim().parse::<f64>().ok()) {
            return Duration::try_from_secs_f64((end - clock.wall()).max(0.0)).ok();
        }
        let answer = squeue(&["--jobs", &self.name()?, "--format", "%L"]);
        match answer {
            Some(Answer { ok: true, text }) => parse_duration(text.lines().next()?.trim()),
            _ => {
                equipoise_telemetry::warn!(
                    "Slurm does not say when this job ends: a time limit will come unannounced"
                );
                None
            }
        }
    }
}

/// Whether Slurm knows an owner's job, queued or running; none if it does not answer.
pub fn is_known(owner: &Owner) -> Option<bool> {
    let answer = squeue(&["--jobs", owner.job.as_ref()?, "--format", "%T"])?;
    match answer.ok {
        true => Some(!answer.text.trim().is_empty()),
        // Slurm forgets a job some minutes after its end.
        false => answer.text.contains("Invalid job id").then_some(false),
    }
}

struct Answer {
    ok: bool,
    /// What it printed; on errors, what it printed about them.
    text: String,
}

/// Asks squeue; none if there is none, or if it does not answer in time.
fn squeue(arguments: &[&str]) -> Option<Answer> {
    let mut command = Command::new("squeue");
    command.arg("--noheader").args(arguments).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
    let ended = ends_in_time(&mut child);
    if !ended {
        let _ = child.kill();
    }
    // What it prints fits into a pipe, so it never waits for a reader.
    let output = child.wait_with_output().ok().filter(|_| ended)?;
    let bytes = if output.status.success() { output.stdout } else { output.stderr };
    Some(Answer { ok: output.status.success(), text: String::from_utf8_lossy(&bytes).into_owned() })
}

fn ends_in_time(child: &mut Child) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        match child.try_wait() {
            Ok(Some(_)) => return true,
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => return false,
        }
    }
    false
}

/// `[[DD-]HH:]MM:SS`; none for UNLIMITED, NOT_SET and INVALID.
fn parse_duration(text: &str) -> Option<Duration> {
    let (days, clock) =
        text.split_once('-').map_or((0, text), |(days, rest)| (days.parse().unwrap_or(0), rest));
    let fields: Vec<u64> = clock.split(':').map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let seconds = match fields[..] {
        [minutes, seconds] => minutes * 60 + seconds,
        [hours, minutes, seconds] => (hours * 60 + minutes) * 60 + seconds,
        _ => return None,
    };
    Some(Duration::from_secs(days * 86400 + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::clock::FakeClock;

    fn job(variables: &[(&str, &str)]) -> Job {
        Job::read(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn a_job_an_array_task_and_neither() {
        assert_eq!(job(&[]), Job::default());
        let plain = job(&[("SLURM_JOB_ID", "7"), ("SLURM_RESTART_COUNT", "2")]);
        assert_eq!((plain.name(), plain.restart, plain.task), (Some("7".into()), 2, None));
        let task = job(&[
            ("SLURM_JOB_ID", "9"),
            ("SLURM_ARRAY_JOB_ID", "8"),
            ("SLURM_ARRAY_TASK_ID", "3"),
            ("SLURM_ARRAY_TASK_COUNT", "5"),
        ]);
        assert_eq!((task.name(), task.task), (Some("8_3".into()), Some(Task { index: 3, count: 5 })));
    }

    #[test]
    fn the_end_time_of_newer_slurms_needs_no_question() {
        let clock = FakeClock::default();
        clock.set_wall(1000.0);
        let left = job(&[("SLURM_JOB_END_TIME", "1090\n")]).time_left(&clock);
        assert_eq!(left, Some(Duration::from_secs(90)));
        assert_eq!(job(&[("SLURM_JOB_END_TIME", "10")]).time_left(&clock), Some(Duration::ZERO));
    }

    #[test]
    fn durations_as_squeue_prints_them() {
        let seconds = |text| parse_duration(text).map(|left| left.as_secs());
        assert_eq!(seconds("0:05"), Some(5));
        assert_eq!(seconds("59:59"), Some(3599));
        assert_eq!(seconds("2:00:01"), Some(7201));
        assert_eq!(seconds("1-02:00:00"), Some(93600));
        for text in ["UNLIMITED", "NOT_SET", "INVALID", "", "5", "1:2:3:4"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
