//! Builds the library that stands in for NCCL where there is no GPU: see `nccl-double/nccl_double.c`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the library into `folder` and returns its path; load it through `EQUIPOISE_NCCL_LIB`.
///
/// # Panics
/// With the compiler's output if it fails.
pub fn build(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("nccl-double/nccl_double.c");
    let library = folder.join("libnccl-double.so");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(compiler);
    command.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]);
    command.arg(&library).arg(&source);
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    library
}
