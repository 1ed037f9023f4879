//! Exit codes are API: scripts and the launcher act on them, so they never change meaning.

use serde::{Deserialize, Serialize};

macro_rules! exit_codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $meaning:literal;)*) => {
        /// How a process of Equipoise ended. Only [`ExitCode::Requeue`] is ever requeued.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ExitCode { $($(#[$doc])* $name = $value,)* }

        impl ExitCode {
            /// All codes, in the order of the documented table.
            pub const ALL: &[ExitCode] = &[$(ExitCode::$name,)*];

            /// One line for the documentation and for messages.
            pub fn meaning(self) -> &'static str {
                match self { $(ExitCode::$name => $meaning,)* }
            }

            /// The code with this process exit status, if it is one of ours.
            pub fn from_status(status: i32) -> Option<Self> {
                match status { $($value => Some(ExitCode::$name),)* _ => None }
            }
        }
    };
}

exit_codes! {
    /// Done.
    Done = 0, "done";
    /// A check ran and failed.
    CheckFailed = 1, "a check ran and failed (verify, shards verify, doctor), or images are missing";
    /// Wrong command line.
    Usage = 64, "wrong command line";
    /// Input data cannot be used.
    BadData = 65, "bad data: an input file is missing, damaged or not what the configuration says";
    /// The stage is owned by another live job.
    Owned = 69, "the stage is owned by another live job";
    /// Requeued again and again without progress.
    NoProgress = 70, "no progress over several attempts (requeue storm)";
    /// A loss or gradient is not finite.
    NonFinite = 71, "a loss, gradient or image is not finite";
    /// Too little space or too few inodes for the plan.
    NoSpace = 73, "not enough space or inodes for the plan";
    /// Reading or writing failed.
    Io = 74, "I/O error";
    /// Progress is committed and the job wants to go on.
    Requeue = 75, "stopped on request with everything committed: requeue or resume";
    /// The configuration is wrong or this machine cannot match the run's identity.
    Config = 78, "bad configuration, or this machine cannot match the identity of the run";
    /// A bug in Equipoise.
    Bug = 101, "a bug in Equipoise";
}

impl ExitCode {
    /// The process exit status.
    pub fn status(self) -> i32 {
        self as i32
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_round_trip_and_are_distinct() {
        let mut seen = std::collections::BTreeSet::new();
        for &code in ExitCode::ALL {
            assert_eq!(ExitCode::from_status(code.status()), Some(code));
            assert!(seen.insert(code.status()));
        }
        assert_eq!(ExitCode::from_status(2), None);
    }
}
