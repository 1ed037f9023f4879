//! `--facts` of a step binary: what it would compute with on this machine, for `equipoise doctor`.

use equipoise_base::{ExitCode, Result, ResultExt as _};
use equipoise_nn::runtime::{self, RuntimeConfig};
use serde::Serialize;
use std::collections::BTreeMap;

/// One JSON object.
#[derive(Debug, Serialize)]
struct Facts {
    /// What decides bits, by name, as in the identity of a stage.
    machine: BTreeMap<String, String>,
    /// GPUs that libtorch sees.
    gpus: usize,
    /// Why there is none.
    why_no_gpu: Option<String>,
    /// NCCL's version and where it was loaded from.
    nccl: Option<String>,
    /// Why it cannot be loaded.
    why_no_nccl: Option<String>,
}

/// Looks for GPUs as a step with `run.device = "auto"` does, and prints what there is.
///
/// # Errors
/// 101 if libtorch cannot be asked.
pub fn print() -> Result<()> {
    runtime::init(&RuntimeConfig::default())?;
    let gpus = runtime::gpus();
    let nccl = nccl();
    let facts = Facts {
        machine: runtime::facts()?,
        gpus,
        why_no_gpu: (gpus == 0).then(runtime::why_no_gpu),
        nccl: nccl.as_ref().ok().cloned(),
        why_no_nccl: nccl.err(),
    };
    println!("{}", serde_json::to_string(&facts).or_exit(ExitCode::Bug, "facts")?);
    Ok(())
}

#[cfg(feature = "nccl")]
fn nccl() -> std::result::Result<String, String> {
    let (version, origin) = equipoise_comm_nccl::version().map_err(|error| error.message().to_string())?;
    Ok(format!("{}.{}.{} ({origin})", version / 10_000, version / 100 % 100, version % 100))
}

#[cfg(not(feature = "nccl"))]
fn nccl() -> std::result::Result<String, String> {
    Err("this build has no NCCL".into())
}
