//! Builds the library that stands in for NCCL where there is no GPU: see `nccl-double/nccl_double.c`.

use crate::shared_library;
use std::path::{Path, PathBuf};

/// Compiles the library into `folder` and returns its path; load it through `EQUIPOISE_NCCL_LIB`.
///
/// # Panics
/// With the compiler's output if it fails.
pub fn build(folder: &Path) -> PathBuf {
    shared_library::build("nccl-double/nccl_double.c", folder, "libnccl-double.so")
}
