//! Who works on which unit: a shard, a chunk, a file of features.
//!
//! Claims only save work. A unit done twice gives the same bytes, so no implementation needs to be perfect: it hands
//! out every unit at least once per attempt, and normally exactly once.

use crate::StopFlag;
use equipoise_base::Result;
use std::collections::VecDeque;
use std::sync::Mutex;

/// The answer to [`Claims::next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Work on this unit, then call [`Claims::finished`].
    Unit(usize),
    /// Nothing is left for this rank; others may still be working.
    Done,
    /// A stop was asked for: commit and end.
    Stop,
}

/// A source of units, shared by the threads of a rank.
pub trait Claims: Send + Sync {
    /// The next unit for this rank. [`Claim::Done`] and [`Claim::Stop`] are final.
    ///
    /// # Errors
    /// Those of the transport or file system below.
    fn next(&self) -> Result<Claim>;

    /// Reports a unit as committed.
    ///
    /// # Errors
    /// Those of the transport or file system below.
    fn finished(&self, unit: usize) -> Result<()>;

    /// True once any rank was asked to stop. Poll it between batches: it also passes on this rank's own stop, and it
    /// never waits.
    ///
    /// # Errors
    /// Those of the transport below.
    fn should_stop(&self) -> Result<bool>;

    /// Ends this rank's part. Where one rank serves the others it waits here until all have closed. Call it on every
    /// path that does not abort, also after a stop in the middle of a unit.
    ///
    /// # Errors
    /// Those of the transport below.
    fn close(&self) -> Result<()>;
}

/// Claims of a world of one.
#[derive(Debug)]
pub struct LocalClaims {
    left: Mutex<VecDeque<usize>>,
    stop: StopFlag,
}

impl LocalClaims {
    /// Hands out `units` in this order.
    pub fn new(units: impl IntoIterator<Item = usize>, stop: StopFlag) -> Self {
        Self { left: Mutex::new(units.into_iter().collect()), stop }
    }
}

impl Claims for LocalClaims {
    fn next(&self) -> Result<Claim> {
        if self.stop.is_raised() {
            return Ok(Claim::Stop);
        }
        let unit = self.left.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop_front();
        Ok(unit.map_or(Claim::Done, Claim::Unit))
    }

    fn finished(&self, _unit: usize) -> Result<()> {
        Ok(())
    }

    fn should_stop(&self) -> Result<bool> {
        Ok(self.stop.is_raised())
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_until_stopped() {
        let stop = StopFlag::default();
        let claims = LocalClaims::new([4, 2], stop.clone());
        assert_eq!(claims.next().unwrap(), Claim::Unit(4));
        stop.raise();
        assert_eq!((claims.next().unwrap(), claims.should_stop().unwrap()), (Claim::Stop, true));
        let claims = LocalClaims::new([], StopFlag::default());
        assert_eq!(claims.next().unwrap(), Claim::Done);
    }
}
