//! Notices asynchronous errors of a group while its rank waits for something else.

use crate::NcclGroup;
use equipoise_base::{Error, ExitCode, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks at the error state.
const PERIOD: Duration = Duration::from_millis(100);

/// A thread that polls a group. Dropping it ends the watch.
#[derive(Debug)]
pub struct Monitor {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// At the first asynchronous error: calls `on_error`, which should report and end the process, then aborts the
    /// group, so that no kernel waits for ever. In this order, because an abort may itself wait for other ranks.
    ///
    /// # Errors
    /// I/O if the thread cannot start.
    pub fn start(group: Arc<NcclGroup>, on_error: impl FnOnce(Error) + Send + 'static) -> Result<Self> {
        let done = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&done);
        let watch = move || {
            while !flag.load(Ordering::SeqCst) {
                if let Err(error) = group.check() {
                    on_error(error);
                    return group.abort();
                }
                std::thread::park_timeout(PERIOD);
            }
        };
        let thread =
            std::thread::Builder::new().name("nccl-monitor".into()).spawn(watch).map_err(|error| {
                Error::new(ExitCode::Io, format!("cannot start the NCCL monitor thread: {error}"))
            })?;
        Ok(Self { done, thread: Some(thread) })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of `on_error` has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
