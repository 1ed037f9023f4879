//! Queueing a job again from within: once, whoever else does the same (F28).

use crate::commands::{Commands, Failure, says_unknown_job};
use crate::scontrol::Job;
use crate::state::JobState;
use equipoise_base::clock::Clock;
use std::time::Duration;

/// The controller, as far as a requeue needs it.
pub trait Controller {
    /// `scontrol show job`; none if it does not know the job.
    ///
    /// # Errors
    /// If Slurm gives no answer.
    fn show(&self) -> Result<Option<Job>, Failure>;

    /// `scontrol requeue`.
    ///
    /// # Errors
    /// If Slurm refuses or gives no answer.
    fn requeue(&self) -> Result<(), Failure>;

    /// Lets the queued job start after `delay`.
    ///
    /// # Errors
    /// If Slurm refuses or gives no answer.
    fn start_after(&self, delay: Duration) -> Result<(), Failure>;

    /// Keeps the queued job away from these nodes, as well as from those that it keeps away from already.
    ///
    /// # Errors
    /// If Slurm refuses or gives no answer.
    fn exclude(&self, nodes: &[String]) -> Result<(), Failure>;
}

/// A job as scontrol addresses it.
pub struct Scontrol<'a> {
    /// Slurm.
    pub commands: &'a Commands,
    /// `JOB`, or `ARRAY_TASK`.
    pub job: String,
}

impl Controller for Scontrol<'_> {
    fn show(&self) -> Result<Option<Job>, Failure> {
        match self.commands.run("scontrol", &["show", "job", &self.job]) {
            Ok(answer) => match Job::parse(&answer.out) {
                Some(job) => Ok(Some(job)),
                None => Err(Failure::Hiccup(format!("scontrol show job {}: not understood", self.job))),
            },
            Err(Failure::Refused(text)) if says_unknown_job(&text) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    fn requeue(&self) -> Result<(), Failure> {
        self.commands.run("scontrol", &["requeue", &self.job]).map(drop)
    }

    fn start_after(&self, delay: Duration) -> Result<(), Failure> {
        let start = format!("StartTime=now+{}", delay.as_secs());
        self.commands.run("scontrol", &["update", &format!("JobId={}", self.job), &start]).map(drop)
    }

    fn exclude(&self, nodes: &[String]) -> Result<(), Failure> {
        // An update replaces the list, and the user may have given one.
        let before = self.show()?.and_then(|job| job.excluded);
        let all: Vec<&str> =
            before.iter().map(String::as_str).chain(nodes.iter().map(String::as_str)).collect();
        let list = format!("ExcNodeList={}", all.join(","));
        self.commands.run("scontrol", &["update", &format!("JobId={}", self.job), &list]).map(drop)
    }
}

/// How a requeue ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requeued {
    /// This job asked for it.
    Done,
    /// Slurm had done it: preemption, or an earlier request whose answer got lost.
    Already,
    /// The job was ended on purpose, or its site does not requeue: `equipoise resume` submits it again.
    Refused(String),
}

/// Pauses before another try, in seconds: KILL may come 30 s after TERM.
const PAUSES: [u64; 6] = [1, 2, 4, 8, 15, 30];

/// Queues the job again unless it is queued already. `restarts` is the count with which this incarnation began.
///
/// Every request comes right after a look, so one that was carried out though its answer got lost is not repeated, and
/// the next incarnation is never hit.
pub fn requeue(controller: &dyn Controller, restarts: u32, clock: &dyn Clock) -> Requeued {
    let mut pauses = PAUSES.into_iter();
    let mut asked = false;
    loop {
        let failure = match controller.show() {
            Ok(None) => return Requeued::Refused("Slurm does not know this job any more".into()),
            Ok(Some(job)) => match look(&job, restarts) {
                Look::Requeued if asked => return Requeued::Done,
                Look::Requeued => return Requeued::Already,
                Look::Ended(why) => return Requeued::Refused(why),
                Look::Ours => {
                    asked = true;
                    match controller.requeue() {
                        Ok(()) => return Requeued::Done,
                        Err(failure) => failure,
                    }
                }
            },
            Err(failure) => failure,
        };
        match (pauses.next(), failure) {
            (Some(seconds), Failure::Hiccup(_)) => clock.sleep(Duration::from_secs(seconds)),
            // What Slurm refuses now it may refuse because the job has just been requeued: one more look tells.
            (Some(_), Failure::Refused(text)) => {
                return match controller.show() {
                    Ok(Some(job)) if look(&job, restarts) == Look::Requeued => Requeued::Already,
                    _ => Requeued::Refused(text),
                };
            }
            (_, failure) => return Requeued::Refused(failure.to_string()),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// It is queued, or runs again.
    Requeued,
    /// It is this incarnation, and Slurm will not queue it again by itself.
    Ours,
    /// Somebody ended it.
    Ended(String),
}

fn look(job: &Job, restarts: u32) -> Look {
    if job.restarts > restarts || job.state.is_waiting() {
        return Look::Requeued;
    }
    match &job.state {
        // Also during the grace time of a preemption, after which Slurm may cancel it.
        JobState::Running
        | JobState::Suspended
        | JobState::Stopped
        | JobState::Signaling
        | JobState::Resizing => Look::Ours,
        // Reached its limit before it was told to stop.
        JobState::Completing | JobState::Timeout if job.reason == "TimeLimit" => Look::Ours,
        state => Look::Ended(format!("the job is {state} (reason {}): it was ended on purpose", job.reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::clock::FakeClock;
    use std::cell::RefCell;

    /// Answers from a list; the last one stays.
    struct Fake {
        shows: RefCell<Vec<Result<Option<Job>, Failure>>>,
        requeues: RefCell<Vec<Result<(), Failure>>>,
        asked: RefCell<u32>,
    }

    impl Fake {
        fn new(shows: &[Result<Option<Job>, Failure>], requeues: &[Result<(), Failure>]) -> Self {
            Self {
                shows: RefCell::new(shows.to_vec()),
                requeues: RefCell::new(requeues.to_vec()),
                asked: RefCell::new(0),
            }
        }

        fn run(&self) -> (Requeued, u32) {
            (requeue(self, 1, &FakeClock::default()), *self.asked.borrow())
        }
    }

    fn next<T: Clone>(list: &RefCell<Vec<T>>) -> T {
        let mut list = list.borrow_mut();
        if list.len() > 1 { list.remove(0) } else { list[0].clone() }
    }

    impl Controller for Fake {
        fn show(&self) -> Result<Option<Job>, Failure> {
            next(&self.shows)
        }

        fn requeue(&self) -> Result<(), Failure> {
            *self.asked.borrow_mut() += 1;
            next(&self.requeues)
        }

        fn start_after(&self, _: Duration) -> Result<(), Failure> {
            Ok(())
        }

        fn exclude(&self, _: &[String]) -> Result<(), Failure> {
            Ok(())
        }
    }

    fn job(state: &str, reason: &str, restarts: u32) -> Result<Option<Job>, Failure> {
        Ok(Some(Job { state: JobState::parse(state), reason: reason.into(), restarts, excluded: None }))
    }

    fn hiccup<T>() -> Result<T, Failure> {
        Err(Failure::Hiccup("Socket timed out".into()))
    }

    fn refused<T>() -> Result<T, Failure> {
        Err(Failure::Refused("Requested operation is presently disabled".into()))
    }

    #[test]
    fn a_running_job_is_requeued_once() {
        assert_eq!(Fake::new(&[job("RUNNING", "None", 1)], &[Ok(())]).run(), (Requeued::Done, 1));
        assert_eq!(Fake::new(&[job("COMPLETING", "TimeLimit", 1)], &[Ok(())]).run(), (Requeued::Done, 1));
    }

    #[test]
    fn what_slurm_has_requeued_is_left_alone() {
        for seen in [job("PENDING", "BeginTime", 2), job("RUNNING", "None", 2), job("REQUEUED", "None", 1)] {
            assert_eq!(Fake::new(&[seen], &[refused()]).run(), (Requeued::Already, 0));
        }
    }

    #[test]
    fn a_cancelled_job_does_not_rise_again() {
        for state in ["COMPLETING", "CANCELLED", "COMPLETED", "FAILED"] {
            let (ended, asked) = Fake::new(&[job(state, "None", 1)], &[Ok(())]).run();
            assert!(matches!(ended, Requeued::Refused(_)) && asked == 0, "{state}: {ended:?}");
        }
    }

    #[test]
    fn a_request_that_was_carried_out_but_timed_out_is_not_repeated() {
        let shows = [job("RUNNING", "None", 1), hiccup(), job("PENDING", "BeginTime", 2)];
        assert_eq!(Fake::new(&shows, &[hiccup()]).run(), (Requeued::Done, 1));
        let shows = [job("RUNNING", "None", 1), job("RUNNING", "None", 1), job("RUNNING", "None", 2)];
        assert_eq!(
            Fake::new(&shows, &[hiccup()]).run(),
            (Requeued::Done, 2),
            "it was not carried out at first"
        );
    }

    #[test]
    fn a_refusal_is_final_unless_the_job_has_just_been_requeued() {
        let raced = [job("RUNNING", "None", 1), job("PENDING", "BeginTime", 2)];
        assert_eq!(Fake::new(&raced, &[refused()]).run(), (Requeued::Already, 1));
        let (ended, asked) = Fake::new(&[job("RUNNING", "None", 1)], &[refused()]).run();
        assert!(matches!(ended, Requeued::Refused(_)) && asked == 1);
    }

    #[test]
    fn a_controller_that_stays_away_is_given_up() {
        let (ended, asked) = Fake::new(&[hiccup()], &[hiccup()]).run();
        assert!(matches!(ended, Requeued::Refused(_)) && asked == 0);
    }
}
