//! What the peer starts from, so that both sides do the same work and must make the same images.

use equipoise_base::{Error, Result};
use equipoise_nn::weights;
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// Writes named tensors as a safetensors file.
///
/// # Errors
/// 74 if it cannot be written.
#[allow(clippy::disallowed_methods, reason = "a file for the peer, not in a run directory")]
pub fn dump(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    std::fs::write(path, weights::to_bytes(tensors, &BTreeMap::new())?)
        .map_err(|error| Error::io("write", path, error))
}
