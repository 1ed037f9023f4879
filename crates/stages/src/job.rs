//! The Slurm job that a step is part of, as its environment and, where that is silent, Slurm itself describe it.

use equipoise_base::clock::Clock;
use equipoise_rundir::lease::Owner;
use equipoise_slurm::{Commands, query};
use std::time::Duration;

/// One task of an array job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// From 0.
    pub index: u64,
    /// Tasks in the array.
    pub count: u64,
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
        let number = |name: &str| variable(name)?.parse::<u64>().ok();
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
        let left = query::time_left(&Commands::default(), &self.name()?);
        if left.is_none() {
            equipoise_telemetry::info!("Slurm names no end of this job");
        }
        left
    }
}

/// Whether Slurm knows an owner's job, queued or running; none if it does not answer.
pub fn is_known(owner: &Owner) -> Option<bool> {
    query::is_known(&Commands::default(), owner.job.as_ref()?)
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
}
