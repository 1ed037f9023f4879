//! The journals in `RUN/slurm/`: what was submitted, and how each attempt went.

use equipoise_base::ExitCode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A line of `journal.jsonl`, written under the lease `slurm/lock`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Submission {
    /// About to be submitted: a job of this name may exist from now on.
    Submitting {
        /// Stage.
        stage: String,
        /// Name of the job, which no other submission has.
        name: String,
        /// Tasks, if it is an array.
        array: Option<u32>,
        /// Seconds since 1970: for people.
        wall: f64,
    },
    /// Slurm has it.
    Submitted {
        /// Stage.
        stage: String,
        /// Name of the job.
        name: String,
        /// Id.
        job: String,
        /// Tasks, if it is an array.
        array: Option<u32>,
        /// Ids of the jobs that it waits for.
        after: Vec<String>,
        /// Seconds since 1970: for people.
        wall: f64,
    },
    /// Slurm refused it, or it was never carried out.
    Dropped {
        /// Name of the job.
        name: String,
        /// What Slurm said.
        reason: String,
        /// Seconds since 1970: for people.
        wall: f64,
    },
    /// Jobs were cancelled by `cancel`, or because the chain could not be submitted whole.
    Cancelled {
        /// Ids.
        jobs: Vec<String>,
        /// Seconds since 1970: for people.
        wall: f64,
    },
}

/// A job that was submitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Submitted {
    /// Stage.
    pub stage: String,
    /// Name.
    pub name: String,
    /// Id.
    pub job: String,
    /// Tasks, if it is an array.
    pub array: Option<u32>,
    /// `cancel` has ended it.
    pub cancelled: bool,
}

/// What a journal comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Jobs {
    /// Every job, oldest first.
    pub all: Vec<Submitted>,
    /// Submissions whose end is not on record: stage, name and tasks.
    pub open: Vec<(String, String, Option<u32>)>,
}

impl Jobs {
    /// Reads the records in order.
    pub fn of(records: &[Submission]) -> Self {
        let mut jobs = Self::default();
        for record in records {
            match record {
                Submission::Submitting { stage, name, array, .. } => {
                    jobs.open.push((stage.clone(), name.clone(), *array));
                }
                Submission::Submitted { stage, name, job, array, .. } => {
                    jobs.open.retain(|(_, open, _)| open != name);
                    let (stage, name, job) = (stage.clone(), name.clone(), job.clone());
                    jobs.all.push(Submitted { stage, name, job, array: *array, cancelled: false });
                }
                Submission::Dropped { name, .. } => jobs.open.retain(|(_, open, _)| open != name),
                Submission::Cancelled { jobs: ids, .. } => {
                    jobs.all
                        .iter_mut()
                        .filter(|job| ids.contains(&job.job))
                        .for_each(|job| job.cancelled = true);
                }
            }
        }
        jobs
    }

    /// Nothing was ever submitted.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.open.is_empty()
    }

    /// The newest job of each stage.
    pub fn newest(&self) -> BTreeMap<&str, &Submitted> {
        self.all.iter().map(|job| (job.stage.as_str(), job)).collect()
    }
}

/// A line of `<stage>.jsonl`, written by the job itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Attempt {
    /// The batch script has started.
    Begin {
        /// Id: that of the array for a task.
        job: String,
        /// How often Slurm had restarted it.
        restart: u32,
        /// Nodes, in Slurm's short form.
        nodes: String,
        /// Hash of the outcome that was there then: it is of an earlier attempt.
        outcome: Option<String>,
        /// Units done before, as `status.json` had them.
        done: u64,
        /// Attempts that the stage had on record.
        #[serde(default)]
        attempts: u64,
        /// Seconds since 1970: for people.
        wall: f64,
    },
    /// What had started the ranks hung, and was ended.
    Hung {
        /// Id: that of the array for a task.
        job: String,
        /// How often Slurm had restarted it.
        restart: u32,
        /// Why, for people.
        reason: String,
        /// Seconds since 1970: for people.
        wall: f64,
    },
    /// The step has ended.
    End {
        /// Id: that of the array for a task.
        job: String,
        /// How often Slurm had restarted it.
        restart: u32,
        /// Exit status of the launcher.
        status: i32,
        /// What it came to.
        code: ExitCode,
        /// Whether the job is queued again.
        requeued: bool,
        /// Whether nothing was finished.
        stalled: bool,
        /// Why, for people.
        reason: String,
        /// Seconds since 1970: for people.
        wall: f64,
    },
}

/// Earlier attempts of one job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Requeues that it asked for.
    pub requeues: u32,
    /// How many of the last ones in a row made nothing.
    pub stalls: u32,
    /// What the running attempt has found.
    pub found: Found,
    /// Its launcher hung.
    pub hung: bool,
}

/// What was there when a batch script started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Hash of the outcome.
    pub outcome: Option<String>,
    /// Units done.
    pub done: u64,
    /// Attempts on record.
    pub attempts: u64,
}

impl History {
    /// The attempts of `job`; those of jobs before it spend another budget.
    pub fn of(records: &[Attempt], job: &str) -> Self {
        let mut history = Self::default();
        for record in records {
            match record {
                Attempt::Begin { job: id, outcome, done, attempts, .. } if id == job => {
                    history.found = Found { outcome: outcome.clone(), done: *done, attempts: *attempts };
                    history.hung = false;
                }
                Attempt::Hung { job: id, .. } if id == job => history.hung = true,
                Attempt::End { job: id, requeued: true, stalled, .. } if id == job => {
                    history.requeues += 1;
                    history.stalls = if *stalled { history.stalls + 1 } else { 0 };
                }
                _ => {}
            }
        }
        history
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submitting(name: &str) -> Submission {
        Submission::Submitting { stage: "a".into(), name: name.into(), array: None, wall: 0.0 }
    }

    fn submitted(name: &str, job: &str) -> Submission {
        let (stage, name, job) = ("a".into(), name.into(), job.into());
        Submission::Submitted { stage, name, job, array: None, after: vec![], wall: 0.0 }
    }

    #[test]
    fn open_submissions_and_the_newest_jobs() {
        let dropped = Submission::Dropped { name: "x".into(), reason: "no".into(), wall: 0.0 };
        let cancelled = Submission::Cancelled { jobs: vec!["1".into()], wall: 0.0 };
        let records = [
            submitting("n1"),
            submitted("n1", "1"),
            submitting("x"),
            dropped,
            cancelled,
            submitting("n2"),
            submitted("n2", "2"),
            submitting("n3"),
        ];
        let jobs = Jobs::of(&records);
        assert_eq!(jobs.open, [("a".to_string(), "n3".to_string(), None)]);
        assert_eq!(jobs.newest()["a"].job, "2");
        assert_eq!(jobs.all.iter().map(|job| job.cancelled).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn stalls_in_a_row_of_this_job() {
        let end = |job: &str, requeued, stalled| Attempt::End {
            job: job.into(),
            restart: 0,
            status: 75,
            code: ExitCode::Requeue,
            requeued,
            stalled,
            reason: String::new(),
            wall: 0.0,
        };
        let records = [
            end("1", true, true),
            end("2", true, true),
            end("2", true, false),
            end("2", true, true),
            end("2", true, true),
        ];
        assert_eq!(History::of(&records, "2"), History { requeues: 4, stalls: 2, ..History::default() });
        assert_eq!(History::of(&records, "3"), History::default());
    }
}
