//! Libraries in C that stand in for something, built when a test needs them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `source`, a path in this crate, into `folder`/`name`, and returns where it is.
///
/// # Panics
/// With the compiler's output if it fails.
pub(crate) fn build(source: &str, folder: &Path, name: &str) -> PathBuf {
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
