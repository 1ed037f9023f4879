//! What follows when the step of a batch job has ended: a pure function, told in `docs/design/slurm.md`.

use equipoise_base::ExitCode;

/// What is known then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Exit code in the `outcome.json` of this very attempt; none if it left none.
    pub outcome: Option<ExitCode>,
    /// Exit status of the launcher; above 128 it stands for a signal.
    pub status: i32,
    /// Whether the stage writes outcomes; otherwise the status is all there is.
    pub writes_outcomes: bool,
    /// Whether the step came as far as to put an attempt on record.
    pub begun: bool,
    /// Whether what started the ranks hung, and was ended.
    pub hung: bool,
    /// Whether the attempt finished at least one batch or step.
    pub progressed: bool,
    /// Requeues of this job right before this attempt that made nothing.
    pub stalls: u32,
    /// Requeues so far that this job asked for.
    pub requeues: u32,
}

/// `slurm.requeue_budget` and `slurm.max_stalls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requeues in all.
    pub budget: u32,
    /// Requeues in a row that make nothing.
    pub stalls: u32,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// End the job with this code, for this reason; without one the outcome tells it.
    Finish(ExitCode, Option<String>),
    /// Queue it again.
    Requeue {
        /// Nothing was finished.
        stalled: bool,
        /// How many times `slurm.requeue_delay` it should wait: more each time in a row that the step could not start.
        /// What an attempt leaves on its nodes, such as a socket of PMIx, takes a while to go away.
        delays: u32,
    },
}

/// Decides. `outcome.json` is believed before the exit status, which a launcher may replace.
pub fn decide(ended: &Ended, limits: Limits) -> Decision {
    let code = code(ended);
    if code != ExitCode::Requeue {
        return Decision::Finish(code, reason(ended, code));
    }
    let stalled = !ended.progressed;
    if stalled && ended.stalls + 1 >= limits.stalls {
        let times = ended.stalls + 1;
        let message = match ended.outcome {
            None if ended.hung && !ended.begun => format!(
                "{times} times in a row the ranks had not begun in time (slurm.start_timeout): see the log of the \
                 job, and `equipoise doctor --node`"
            ),
            None if !ended.begun => format!(
                "{times} times in a row the step ended before it had begun (status {}; 137 may mean out of memory: \
                 slurm.mem): see the log of the job",
                ended.status
            ),
            _ => format!(
                "stopped {times} times in a row without finishing a single batch or step: the time limit or \
                 slurm.signal_lead leaves no time to work"
            ),
        };
        return Decision::Finish(ExitCode::NoProgress, Some(message));
    }
    if ended.requeues >= limits.budget {
        let message = format!("the budget of {} requeues is spent (slurm.requeue_budget)", limits.budget);
        return Decision::Finish(ExitCode::Requeue, Some(message));
    }
    let delays = match ended.stalls {
        _ if !could_not_start(ended) => 1,
        0 => 2,
        _ => 16,
    };
    Decision::Requeue { stalled, delays }
}

/// It failed before there was an attempt, and was not told to stop.
fn could_not_start(ended: &Ended) -> bool {
    let told = [ExitCode::Requeue.status(), STOPPED_BY_TERM, STOPPED_BY_USR2].contains(&ended.status);
    ended.outcome.is_none() && !ended.begun && (ended.hung || !told)
}

fn code(ended: &Ended) -> ExitCode {
    if let Some(code) = ended.outcome {
        return code;
    }
    if ended.hung {
        return ExitCode::Requeue;
    }
    match (ended.status, ExitCode::from_status(ended.status)) {
        (_, Some(ExitCode::Done)) if !ended.writes_outcomes => ExitCode::Done,
        // srun says so when it could not start the step, such as where the PMIx socket of an earlier start is in the
        // way, and that passes. Nothing was made, so it is a stall, and those are numbered.
        (_, Some(ExitCode::Done)) => ExitCode::Requeue,
        (_, Some(code)) => code,
        // Hit by the request to stop before it listened: nothing was begun, so nothing is lost.
        (STOPPED_BY_TERM | STOPPED_BY_USR2, None) => ExitCode::Requeue,
        // It crashed while MPI and the libraries started, or srun could not start all tasks and killed the others: nothing
        // was begun, and another try may fare better.
        (129.., None) if ended.writes_outcomes && !ended.begun => ExitCode::Requeue,
        (129.., None) => ExitCode::Io,
        (_, None) => ExitCode::Bug,
    }
}

/// 128 + SIGTERM.
const STOPPED_BY_TERM: i32 = 143;
/// 128 + SIGUSR2.
const STOPPED_BY_USR2: i32 = 140;

fn reason(ended: &Ended, code: ExitCode) -> Option<String> {
    match (ended.outcome, ended.status) {
        (Some(_), _) => None,
        (None, 0) => Some(code.meaning().into()),
        (None, status @ 129..) => Some(format!(
            "the step was killed by signal {}; what it had committed is kept (signal 9 often means out of memory: slurm.mem)",
            status - 128
        )),
        (None, status) => Some(format!(
            "the step ended with status {status} before it could record why: see the log of the job"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { budget: 10, stalls: 3 };

    fn ended(outcome: Option<ExitCode>, status: i32) -> Ended {
        Ended {
            outcome,
            status,
            writes_outcomes: true,
            begun: true,
            hung: false,
            progressed: true,
            stalls: 0,
            requeues: 0,
        }
    }

    fn code(ended: &Ended) -> Option<ExitCode> {
        match decide(ended, LIMITS) {
            Decision::Finish(code, _) => Some(code),
            Decision::Requeue { .. } => None,
        }
    }

    #[test]
    fn only_75_is_requeued_whatever_the_status_says() {
        for &outcome in ExitCode::ALL {
            for status in [0, 1, 75, 137, 143] {
                let expected = (outcome != ExitCode::Requeue).then_some(outcome);
                assert_eq!(code(&ended(Some(outcome), status)), expected, "{outcome:?} {status}");
            }
        }
    }

    #[test]
    fn without_an_outcome_the_status_decides() {
        for (status, expected) in [
            (0, None),
            (75, None),
            (143, None),
            (140, None),
            (137, Some(ExitCode::Io)),
            (139, Some(ExitCode::Io)),
            (78, Some(ExitCode::Config)),
            (69, Some(ExitCode::Owned)),
            (127, Some(ExitCode::Bug)),
            (2, Some(ExitCode::Bug)),
        ] {
            assert_eq!(code(&ended(None, status)), expected, "{status}");
        }
        assert_eq!(code(&Ended { writes_outcomes: false, ..ended(None, 0) }), Some(ExitCode::Done));
    }

    /// A segmentation fault while MPI starts, which was seen once, is no failure of the run.
    #[test]
    fn a_step_that_crashes_before_it_has_begun_is_tried_again() {
        let crashed = |stalls| Ended { begun: false, progressed: false, stalls, ..ended(None, 139) };
        assert_eq!(decide(&crashed(0), LIMITS), Decision::Requeue { stalled: true, delays: 2 });
        assert_eq!(decide(&crashed(1), LIMITS), Decision::Requeue { stalled: true, delays: 16 });
        assert_eq!(code(&crashed(2)), Some(ExitCode::NoProgress));
        assert_eq!(code(&Ended { begun: true, ..crashed(0) }), Some(ExitCode::Io));
        assert_eq!(code(&Ended { writes_outcomes: false, ..crashed(0) }), Some(ExitCode::Io));
        assert_eq!(code(&Ended { status: 137, ..crashed(0) }), None, "srun killed what it had started");
        assert_eq!(code(&Ended { status: 78, ..crashed(0) }), Some(ExitCode::Config));
    }

    /// Whatever its launcher was killed with.
    #[test]
    fn a_step_that_hangs_is_tried_again() {
        let hung = |stalls| Ended { hung: true, begun: false, progressed: false, stalls, ..ended(None, 137) };
        assert_eq!(decide(&hung(0), LIMITS), Decision::Requeue { stalled: true, delays: 2 });
        let Decision::Finish(ExitCode::NoProgress, Some(why)) = decide(&hung(2), LIMITS) else { panic!() };
        assert!(why.contains("slurm.start_timeout"), "{why}");
        assert_eq!(code(&Ended { outcome: Some(ExitCode::Done), ..hung(0) }), Some(ExitCode::Done));
    }

    #[test]
    fn a_storm_stops_and_progress_forgives() {
        let stalled = |stalls| Ended { progressed: false, stalls, ..ended(Some(ExitCode::Requeue), 75) };
        assert_eq!(decide(&stalled(0), LIMITS), Decision::Requeue { stalled: true, delays: 1 });
        assert_eq!(decide(&stalled(1), LIMITS), Decision::Requeue { stalled: true, delays: 1 });
        assert_eq!(code(&stalled(2)), Some(ExitCode::NoProgress));
        let unstarted = Ended { outcome: None, status: 0, begun: false, ..stalled(2) };
        let Decision::Finish(ExitCode::NoProgress, Some(why)) = decide(&unstarted, LIMITS) else { panic!() };
        assert!(why.contains("before it had begun (status 0;"), "{why}");
        let progressed = Ended { progressed: true, ..stalled(2) };
        assert_eq!(decide(&progressed, LIMITS), Decision::Requeue { stalled: false, delays: 1 });
    }

    #[test]
    fn a_spent_budget_leaves_the_rest_to_resume() {
        let spent = Ended { requeues: 10, ..ended(Some(ExitCode::Requeue), 75) };
        assert_eq!(code(&spent), Some(ExitCode::Requeue));
        assert_eq!(code(&Ended { requeues: 9, ..spent }), None);
    }
}
