//! How training ranks decide together, at a step boundary, whether to go on.
//!
//! Every rank brings what it has seen; one reduced integer gives all of them the most severe verdict and the lowest
//! rank that brought it, so they stop at the same step and name the same cause.

use crate::Comm;
use equipoise_base::{ExitCode, Result, bail};

/// What one rank has seen at a step boundary, by severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing: take the next step.
    Go,
    /// The wall time is nearly over: commit and end.
    Deadline,
    /// A signal asked for a stop: commit and end.
    Stop,
    /// A loss or gradient is not finite: end before the optimizer changes anything.
    NonFinite,
    /// Writing or reading failed.
    Io,
}

impl Verdict {
    const ALL: [Verdict; 5] =
        [Verdict::Go, Verdict::Deadline, Verdict::Stop, Verdict::NonFinite, Verdict::Io];

    /// Exit code of a step that ends with this verdict; none to go on.
    pub fn exit_code(self) -> Option<ExitCode> {
        match self {
            Verdict::Go => None,
            Verdict::Deadline | Verdict::Stop => Some(ExitCode::Requeue),
            Verdict::NonFinite => Some(ExitCode::NonFinite),
            Verdict::Io => Some(ExitCode::Io),
        }
    }
}

/// The verdict of all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The most severe one.
    pub verdict: Verdict,
    /// Lowest rank that brought it.
    pub rank: usize,
}

/// Reduces the verdicts of all ranks: a collective, one 8-byte reduction.
///
/// # Errors
/// Those of the reduction.
pub fn agree(comm: &dyn Comm, own: Verdict) -> Result<Agreed> {
    // Severity above, inverted rank below: the maximum is the lowest rank of the most severe verdict.
    let mut packed = [((own as i64) << 32) | (i64::from(u32::MAX) - comm.rank() as i64)];
    comm.all_reduce_max(&mut packed)?;
    let rank = i64::from(u32::MAX) - (packed[0] & i64::from(u32::MAX));
    match Verdict::ALL.get((packed[0] >> 32) as usize) {
        Some(&verdict) => Ok(Agreed { verdict, rank: rank as usize }),
        None => bail!(Bug, "ranks agreed on the unknown code {:#x}: do they run the same build?", packed[0]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::run;

    #[test]
    fn the_most_severe_verdict_of_the_lowest_rank_wins() {
        let cases = [
            ([Verdict::Go; 4], Verdict::Go, 0),
            ([Verdict::Go, Verdict::Stop, Verdict::Go, Verdict::Stop], Verdict::Stop, 1),
            ([Verdict::Stop, Verdict::Deadline, Verdict::NonFinite, Verdict::Stop], Verdict::NonFinite, 2),
            ([Verdict::Io, Verdict::Io, Verdict::NonFinite, Verdict::Go], Verdict::Io, 0),
        ];
        for (own, verdict, rank) in cases {
            let agreed = run(4, |comm| agree(&comm, own[comm.rank()]).unwrap());
            assert_eq!(agreed, [Agreed { verdict, rank }; 4]);
        }
    }
}
