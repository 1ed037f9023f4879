//! A panic on one rank ends all of them: nobody waits in a collective for a rank that is unwinding.

use crate::Comm;
use equipoise_base::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Makes any panic, on any thread, print as usual, then call `report` with its message (which should write
/// `outcome.json`), then abort all ranks with 101.
///
/// A panic inside `report` aborts without it. Not for tests over [`ThreadComm`](crate::threads::ThreadComm): the hook
/// is the process's.
pub fn abort_on_panic(comm: Arc<dyn Comm>, report: impl Fn(&str) + Send + Sync + 'static) {
    let print = std::panic::take_hook();
    let reporting = AtomicBool::new(false);
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        if !reporting.swap(true, Ordering::SeqCst) {
            report(&format!("rank {}: {panic}", comm.rank()));
        }
        comm.abort(ExitCode::Bug.status())
    }));
}
