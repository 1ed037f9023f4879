//! States of a job.

use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $short:literal, $life:ident;)*) => {
        /// What a job is doing, as squeue, sacct and scontrol name it.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum JobState {
            $($(#[$doc])* $name,)*
            /// A state that this version does not know; such a job is taken for alive.
            Other(String),
        }

        impl JobState {
            /// Every state that has a name of its own.
            pub const ALL: &[JobState] = &[$(JobState::$name,)*];

            /// Reads a long or short name. sacct adds to some: `CANCELLED by 1000`, `CANCELLED+`.
            pub fn parse(text: &str) -> Self {
                let word = text.split_whitespace().next().unwrap_or_default().trim_end_matches('+');
                match word.to_ascii_uppercase().as_str() {
                    $($text | $short => JobState::$name,)*
                    _ => JobState::Other(text.trim().to_string()),
                }
            }

            /// Its long name.
            pub fn name(&self) -> &str {
                match self {
                    $(JobState::$name => $text,)*
                    JobState::Other(text) => text,
                }
            }

            fn life(&self) -> Life {
                match self {
                    $(JobState::$name => Life::$life,)*
                    JobState::Other(_) => Life::Active,
                }
            }
        }
    };
}

#[derive(PartialEq, Eq)]
enum Life {
    Waiting,
    Active,
    Over,
}

states! {
    /// The node could not boot.
    BootFail = "BOOT_FAIL", "BF", Over;
    /// By its user or an administrator.
    Cancelled = "CANCELLED", "CA", Over;
    /// Ended with 0.
    Completed = "COMPLETED", "CD", Over;
    /// Nodes are being made ready.
    Configuring = "CONFIGURING", "CF", Active;
    /// Ending: processes or epilog are still there.
    Completing = "COMPLETING", "CG", Active;
    /// Could not have ended before its deadline.
    Deadline = "DEADLINE", "DL", Over;
    /// Being sent to hosts that are being made for it.
    Expediting = "EXPEDITING", "EX", Active;
    /// Ended with another status than 0.
    Failed = "FAILED", "F", Over;
    /// The launch failed.
    LaunchFailed = "LAUNCH_FAILED", "LF", Over;
    /// A node went down.
    NodeFail = "NODE_FAIL", "NF", Over;
    /// Out of memory.
    OutOfMemory = "OUT_OF_MEMORY", "OOM", Over;
    /// Waiting.
    Pending = "PENDING", "PD", Waiting;
    /// Nodes are being powered up.
    PowerUpNode = "POWER_UP_NODE", "PU", Active;
    /// By a job of higher priority.
    Preempted = "PREEMPTED", "PR", Over;
    /// The reconfiguration of its nodes failed.
    ReconfigFail = "RECONFIG_FAIL", "RCF", Over;
    /// Running.
    Running = "RUNNING", "R", Active;
    /// Held: its reservation is gone.
    ResvDelHold = "RESV_DEL_HOLD", "RD", Waiting;
    /// Being requeued by a federation.
    RequeueFed = "REQUEUE_FED", "RF", Waiting;
    /// Held after a requeue.
    RequeueHold = "REQUEUE_HOLD", "RH", Waiting;
    /// Ending, to be queued again.
    Requeued = "REQUEUED", "RQ", Waiting;
    /// Changing its size.
    Resizing = "RESIZING", "RS", Active;
    /// Started by another cluster of the federation.
    Revoked = "REVOKED", "RV", Over;
    /// Being signalled.
    Signaling = "SIGNALING", "SI", Active;
    /// Held after a special exit.
    SpecialExit = "SPECIAL_EXIT", "SE", Waiting;
    /// Staging files out.
    StageOut = "STAGE_OUT", "SO", Active;
    /// Stopped, its processors kept.
    Stopped = "STOPPED", "ST", Active;
    /// Stopped, its processors given to others.
    Suspended = "SUSPENDED", "S", Active;
    /// Reached its time limit.
    Timeout = "TIMEOUT", "TO", Over;
    /// Being recorded.
    UpdateDb = "UPDATE_DB", "UD", Active;
}

impl JobState {
    /// It runs, waits, or is about to do one of them.
    pub fn is_live(&self) -> bool {
        self.life() != Life::Over
    }

    /// It waits for its start.
    pub fn is_waiting(&self) -> bool {
        self.life() == Life::Waiting
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for JobState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for JobState {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::parse(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_kept() {
        for state in JobState::ALL {
            assert_eq!(&JobState::parse(state.name()), state);
        }
        assert_eq!(JobState::parse("CANCELLED by 1000"), JobState::Cancelled);
        assert_eq!(JobState::parse("CANCELLED+"), JobState::Cancelled);
        assert_eq!(JobState::parse("pd"), JobState::Pending);
        let unknown = JobState::parse("FOO");
        assert_eq!(unknown, JobState::Other("FOO".into()));
        assert!(unknown.is_live() && !unknown.is_waiting());
    }

    #[test]
    fn what_is_over_is_over() {
        for over in ["CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"]
        {
            assert!(!JobState::parse(over).is_live(), "{over}");
        }
        for waits in ["PENDING", "REQUEUED", "REQUEUE_HOLD"] {
            assert!(JobState::parse(waits).is_waiting(), "{waits}");
        }
    }
}
