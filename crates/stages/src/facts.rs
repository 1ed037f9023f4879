//! `--facts` of a step binary: what it would compute with on this machine, for `equipoise doctor`.

use equipoise_base::{ExitCode, Result, ResultExt as _, bail};
use equipoise_nn::runtime::{self, RuntimeConfig};
use serde::Serialize;
use std::collections::BTreeMap;

/// One JSON object.
#[derive(Debug, Serialize)]
pub struct Facts {
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
    println!("{}", serde_json::to_string(&here()?).or_exit(ExitCode::Bug, "facts")?);
    Ok(())
}

/// What this process computes with, after `runtime::init`.
///
/// # Errors
/// 101 if libtorch cannot be asked.
pub fn here() -> Result<Facts> {
    let gpus = runtime::gpus();
    let nccl = nccl();
    Ok(Facts {
        machine: runtime::facts()?,
        gpus,
        why_no_gpu: (gpus == 0).then(runtime::why_no_gpu),
        nccl: nccl.as_ref().ok().cloned(),
        why_no_nccl: nccl.err(),
    })
}

impl Facts {
    fn machine(&self, name: &str) -> &str {
        self.machine.get(name).map_or("unknown", String::as_str)
    }

    /// libtorch and the instructions that its CPU kernels use.
    pub fn libtorch(&self) -> String {
        format!(
            "{}, {} kernels, oneDNN {}",
            self.machine("libtorch"),
            self.machine("cpu"),
            self.machine("onednn_isa")
        )
    }

    /// GPUs; none is no failure, runs use the CPU then.
    pub fn gpu(&self) -> String {
        match self.gpus {
            0 => format!("none, runs on the CPU: {}", self.why_no_gpu.as_deref().unwrap_or("unknown")),
            count => format!("{count} x {}; TF32 {}", self.machine("gpu"), self.machine("tf32")),
        }
    }

    /// NCCL, which ranks with a GPU each need.
    ///
    /// # Errors
    /// 1 if there are GPUs and no NCCL.
    pub fn nccl(&self) -> Result<String> {
        match (&self.nccl, self.gpus) {
            (Some(version), _) => Ok(version.clone()),
            (None, 0) => Ok("not there; only a training on several GPUs needs it".into()),
            (None, _) => bail!(CheckFailed, "{}", self.why_no_nccl.as_deref().unwrap_or("unknown")),
        }
    }
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
