//! Small libraries in C that stand in for what a test machine does not have.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `source`, a path within this crate, into `folder` under `name` and returns the library's path.
///
/// # Panics
/// With the compiler's output if it fails.
pub fn build(source: &str, folder: &Path, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let library = folder.join(name);
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(compiler);
    command.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]);
    command.arg(&library).arg(&source).arg("-ldl");
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    library
}

/// A library to preload: every lock of a file then fails, as on a file system without locks (F31).
///
/// # Panics
/// As [`build`].
pub fn no_locks(folder: &Path) -> PathBuf {
    build("no-locks/no_locks.c", folder, "libno-locks.so")
}
