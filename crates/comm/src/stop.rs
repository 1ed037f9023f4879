//! The stop flag: handlers only set it, loops look at it between batches or steps.

use equipoise_base::{ExitCode, Result, ResultExt as _};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR2};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Signals that ask a step to commit and end. USR1 is NCCL's.
pub const STOP_SIGNALS: [i32; 3] = [SIGTERM, SIGINT, SIGUSR2];

/// Set once, by a signal, a deadline or another rank; never cleared within an attempt. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Asks for a stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// True once a stop was asked for.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Lets [`STOP_SIGNALS`] raise the flag. Call it first in `main`: a signal before kills the process.
    ///
    /// # Errors
    /// Exit code I/O if the system refuses a handler.
    pub fn on_signals(&self) -> Result<()> {
        for signal in STOP_SIGNALS {
            signal_hook::flag::register(signal, Arc::clone(&self.0))
                .or_exit(ExitCode::Io, format_args!("cannot handle signal {signal}"))?;
        }
        Ok(())
    }
}
