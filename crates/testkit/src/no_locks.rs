//! A file system without locks: see `no-locks/no_locks.c`.

use std::path::Path;
use std::process::Command;

/// Lets a command, and everything that it starts, find no locks below `folder`. The library is put beside it.
///
/// # Panics
/// With the compiler's output if it cannot be built.
pub fn below(folder: &Path, command: &mut Command) {
    let place = folder.parent().unwrap_or(folder);
    let library = crate::library::build("no-locks/no_locks.c", place, "libno-locks.so");
    command.env("LD_PRELOAD", library).env("EQUIPOISE_NO_LOCKS", folder);
}
