//! What has to be settled before the first tensor operation: device, threads, determinism; and the facts about this
//! machine that decide bits (DESIGN "Identity, not position", docs/design/determinism.md).

use crate::{cuda, shim};
use equipoise_base::{Result, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::OnceLock;
use tch::{Device, Tensor};

/// Where tensors live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceChoice {
    /// A GPU if libtorch sees one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU; without one the step exits 78.
    Cuda,
}

/// How a step binary computes. All fields but `local_rank` are identity fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// Where tensors live.
    pub device: DeviceChoice,
    /// CPU threads within one operation, per rank. Convolution gradients differ in the last bits between 1 and 2.
    pub threads: usize,
    /// Deterministic operators only, and no search for the fastest cuDNN kernel.
    pub deterministic: bool,
    /// Let fp32 products and convolutions on a GPU round their inputs to TF32 (10-bit mantissa).
    pub tf32: bool,
    /// Rank among the ranks of this node: which of its GPUs to use. Set by the launcher.
    #[serde(skip)]
    pub local_rank: usize,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self { device: DeviceChoice::Auto, threads: 1, deterministic: true, tf32: false, local_rank: 0 }
    }
}

/// What `init` settled.
static ACTIVE: OnceLock<(RuntimeConfig, Device)> = OnceLock::new();

/// Why libtorch's CUDA half could not be loaded; empty if it was.
static CUDA_MISSING: OnceLock<String> = OnceLock::new();

/// Fixes the workspace of cuBLAS, which is what makes its split sums repeatable.
const WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";

/// Settles device, threads and determinism for this process. The first thing in `main`, while there is one thread
/// and before any tensor exists: CUDA support that is loaded later stays invisible to libtorch.
///
/// # Errors
/// 78 if `cuda` is asked for and absent, if `threads` is 0, or if called again with another configuration.
pub fn init(config: &RuntimeConfig) -> Result<()> {
    ensure!(config.threads > 0, Config, "runtime.threads: 0 threads cannot compute, give at least 1");
    if let Some((active, _)) = ACTIVE.get() {
        ensure!(active == config, Config, "runtime: already initialised with {active:?}");
        return Ok(());
    }
    if config.device != DeviceChoice::Cpu {
        prepare_cuda(config.deterministic);
    }
    let threads = i32::try_from(config.threads).unwrap_or(i32::MAX);
    tch::set_num_threads(threads);
    tch::set_num_interop_threads(1);
    shim::set_determinism(config.deterministic, config.tf32)?;
    let device = choose(config)?;
    // A second caller that won the race holds an equal configuration or fails at its next call.
    ACTIVE.get_or_init(|| (config.clone(), device));
    Ok(())
}

/// Loads libtorch's CUDA half if this installation has one; without it the process stays on the CPU.
fn prepare_cuda(deterministic: bool) {
    if deterministic && std::env::var_os(WORKSPACE).is_none() {
        // SAFETY: `init` is called while the process has one thread. cuBLAS reads this when it is first used.
        unsafe { std::env::set_var(WORKSPACE, ":4096:8") };
    }
    // SAFETY: loads a library whose initialisers register themselves with libtorch_cpu. The handle is leaked on
    // purpose: the library stays for the life of the process. dlerror returns a valid string after a failure.
    let missing = unsafe {
        match libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() {
            false => String::new(),
            true => CStr::from_ptr(libc::dlerror()).to_string_lossy().into_owned(),
        }
    };
    CUDA_MISSING.get_or_init(|| missing);
}

/// Why there is no GPU in this process although one was looked for, as far as that is known.
pub fn why_no_gpu() -> String {
    match CUDA_MISSING.get().map(String::as_str) {
        None => "none was asked for".into(),
        Some("") => "libtorch's CUDA half is loaded and sees no GPU: request one, or load its driver".into(),
        Some(why) => format!("libtorch's CUDA half cannot be loaded ({why})"),
    }
}

fn choose(config: &RuntimeConfig) -> Result<Device> {
    let count = match config.device {
        DeviceChoice::Cpu => 0,
        DeviceChoice::Auto | DeviceChoice::Cuda => visible_gpus(),
    };
    match (config.device, count) {
        (DeviceChoice::Cuda, 0) => bail!(
            Config,
            "run.device = \"cuda\": there is no GPU: {}; or set run.device = \"auto\"",
            why_no_gpu()
        ),
        (_, 0) => Ok(Device::Cpu),
        (_, count) => Ok(Device::Cuda(config.local_rank % count)),
    }
}

/// The device that [`init`] chose; the CPU before it.
pub fn device() -> Device {
    ACTIVE.get().map_or(Device::Cpu, |(_, device)| *device)
}

/// Number of GPUs that libtorch sees; 0 before [`init`], or if it was told to stay on the CPU.
pub fn gpus() -> usize {
    match ACTIVE.get() {
        Some((config, _)) if config.device != DeviceChoice::Cpu => visible_gpus(),
        _ => 0,
    }
}

fn visible_gpus() -> usize {
    usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
}

/// What tells this process's GPU from all others, under whatever number they go; `None` on a CPU.
pub fn gpu_uuid() -> Option<[u8; 16]> {
    match device() {
        Device::Cuda(index) => cuda::uuid(index),
        _ => None,
    }
}

/// Memory of this process's GPU that is taken, by whomever, and all of it, in bytes; `None` on a CPU.
pub fn gpu_memory() -> Option<(u64, u64)> {
    match device() {
        Device::Cuda(_) => cuda::memory(),
        _ => None,
    }
}

/// A host tensor in memory that the GPU reads by itself, so that [`upload`] need not wait; the same where there is
/// no GPU. For a thread that prepares batches: it copies once.
///
/// # Errors
/// 101 if libtorch cannot get such memory.
pub fn pinned(tensor: Tensor) -> Result<Tensor> {
    if device() == Device::Cpu { Ok(tensor) } else { shim::pin_memory(&tensor) }
}

/// A host tensor on this process's device, in the order of its other work: the host does not wait for it.
pub fn upload(tensor: &Tensor) -> Tensor {
    upload_to(tensor, device())
}

/// [`upload`] to a device at hand, such as that of another tensor.
pub fn upload_to(tensor: &Tensor, device: Device) -> Tensor {
    match device {
        Device::Cpu => tensor.shallow_clone(),
        device => tensor.to_device_(device, tensor.kind(), true, false),
    }
}

/// The instruction set that libtorch's CPU kernels use, such as `AVX2`; pinned by `ATEN_CPU_CAPABILITY`.
pub fn capability() -> Result<String> {
    shim::cpu_capability()
}

/// Versions of libtorch and the numerical libraries inside it, by name.
pub fn versions() -> Result<BTreeMap<String, String>> {
    let lines = shim::versions()?;
    Ok(lines.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect())
}

/// Operators that have run without a deterministic implementation since [`init`], by name; what was computed with
/// them is stored with `reproducible=false`.
pub fn nondeterministic_operators() -> Result<Vec<String>> {
    Ok(shim::nondeterministic_operators()?.lines().map(str::to_owned).collect())
}

/// Whether this process's device multiplies bfloat16 faster than fp32: a GPU, or a CPU with the instructions for it
/// that `ONEDNN_MAX_CPU_ISA` leaves in use.
///
/// # Errors
/// Those of [`facts`].
pub fn bf16_is_fast() -> Result<bool> {
    let facts = facts()?;
    Ok(facts["gpu"] != "none" || multiplies_bf16(&facts["onednn_isa"]))
}

/// Whether an instruction set, as [`onednn_isa`] names it, has products of bfloat16.
fn multiplies_bf16(isa: &str) -> bool {
    isa == "AVX512_CORE_BF16" || isa == "AVX512_CORE_AMX" || isa.split(',').any(|flag| flag == "avx512_bf16")
}

/// Everything about this process and machine that can change bits, by name.
///
/// Two processes with equal facts and equal inputs give equal results. A node that differs exits 78; the key says
/// which constraint to request.
pub fn facts() -> Result<BTreeMap<String, String>> {
    let config = ACTIVE.get().map(|(config, _)| config.clone()).unwrap_or_default();
    let mut facts = versions()?;
    let mut add = |key: &str, value: String| facts.insert(key.to_owned(), value);
    add("rng", equipoise_base::rng::VERSION.to_string());
    add("threads", tch::get_num_threads().to_string());
    add("deterministic", config.deterministic.to_string());
    add("cpu", capability()?);
    let cpu = cpu_facts(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    // MKL chooses kernels by vendor unless told otherwise, oneDNN by the widest instructions it finds.
    add("mkl_isa", std::env::var("MKL_CBWR").unwrap_or(cpu.vendor));
    add("onednn_isa", onednn_isa(std::env::var("ONEDNN_MAX_CPU_ISA").ok().as_deref(), &cpu.vectors));
    match device() {
        Device::Cuda(index) => {
            add("tf32", config.tf32.to_string());
            add("cublas_workspace", std::env::var(WORKSPACE).unwrap_or_else(|_| "none".into()));
            add("gpu", cuda::describe(index).unwrap_or_else(|| "unknown".into()))
        }
        _ => add("gpu", "none".into()),
    };
    Ok(facts)
}

/// [`facts`] as one canonical line, to be hashed into identities.
pub fn fingerprint() -> Result<String> {
    let pairs: Vec<String> = facts()?.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    Ok(pairs.join(";"))
}

/// What decides oneDNN's kernels: the limit it was given if this CPU reaches it, else all that the CPU has.
fn onednn_isa(limit: Option<&str>, vectors: &str) -> String {
    let needed: &[&str] = match limit {
        Some("SSE41") => &[],
        Some("AVX") => &["avx"],
        Some("AVX2") => &["avx2"],
        Some("AVX512_CORE") => &["avx512f", "avx512bw", "avx512dq", "avx512vl"],
        Some("AVX512_CORE_VNNI") => &["avx512bw", "avx512_vnni"],
        Some("AVX512_CORE_BF16") => &["avx512bw", "avx512_bf16"],
        Some("AVX512_CORE_AMX") => &["avx512_bf16", "amx_tile", "amx_bf16"],
        Some(_) | None => return vectors.to_owned(),
    };
    let has = |flag: &&str| vectors.split(',').any(|have| have == *flag);
    if needed.iter().all(has) { limit.unwrap_or_default().to_owned() } else { vectors.to_owned() }
}

struct CpuFacts {
    vendor: String,
    vectors: String,
}

/// Vendor and vector extensions of the first core in `/proc/cpuinfo`; empty where it says nothing.
fn cpu_facts(cpuinfo: &str) -> CpuFacts {
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
    };
    let is_vector =
        |flag: &&str| ["avx", "amx", "fma", "asimd", "sve"].iter().any(|start| flag.starts_with(start));
    let mut flags: Vec<&str> = field("flags").split_whitespace().filter(is_vector).collect();
    flags.sort_unstable();
    CpuFacts { vendor: field("vendor_id").to_owned(), vectors: flags.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_is_once_and_facts_are_complete() {
        let config = RuntimeConfig { device: DeviceChoice::Cpu, ..Default::default() };
        init(&config).unwrap();
        init(&config).unwrap();
        let error = init(&RuntimeConfig { threads: 2, ..config }).unwrap_err();
        assert_eq!(error.code(), equipoise_base::ExitCode::Config);
        let facts = facts().unwrap();
        assert_eq!(facts["libtorch"], "2.11.0");
        assert_eq!(facts["threads"], "1");
        for key in ["cpu", "onednn_isa", "mkl_isa", "onednn", "gpu", "deterministic"] {
            assert!(!facts[key].is_empty(), "{key}");
        }
        assert_eq!(fingerprint().unwrap(), fingerprint().unwrap());
        assert!(nondeterministic_operators().unwrap().is_empty());
    }

    #[test]
    fn without_a_gpu_tensors_stay_where_they_are() {
        let tensor = Tensor::from_slice(&[1f32, 2.]);
        assert_eq!(upload(&tensor).data_ptr(), tensor.data_ptr());
        let address = tensor.data_ptr();
        assert_eq!(pinned(tensor).unwrap().data_ptr(), address);
        assert!(gpu_uuid().is_none() && gpus() == 0);
    }

    #[test]
    fn zero_threads_are_refused() {
        let error = init(&RuntimeConfig { threads: 0, ..Default::default() }).unwrap_err();
        assert!(error.message().contains("runtime.threads"), "{error}");
    }

    #[test]
    fn a_limit_that_the_cpu_does_not_reach_decides_nothing() {
        assert_eq!(onednn_isa(Some("AVX2"), "avx,avx2,avx512f"), "AVX2");
        assert_eq!(onednn_isa(Some("AVX512_CORE_BF16"), "avx,avx2"), "avx,avx2");
        assert_eq!(onednn_isa(Some("ALL"), "avx,avx2"), "avx,avx2");
        assert_eq!(onednn_isa(None, "avx"), "avx");
    }

    #[test]
    fn bf16_is_fast_only_where_instructions_for_it_are_in_use() {
        assert!(multiplies_bf16("AVX512_CORE_BF16") && multiplies_bf16("AVX512_CORE_AMX"));
        assert!(multiplies_bf16("avx,avx512_bf16,fma"));
        assert!(!multiplies_bf16("AVX512_CORE") && !multiplies_bf16("avx,avx2") && !multiplies_bf16(""));
    }

    #[test]
    fn vectors_and_vendor_from_cpuinfo() {
        let facts =
            cpu_facts("vendor_id\t: AuthenticAMD\nflags\t\t: fpu sse2 fma avx2 avx\n\nvendor_id : x\n");
        assert_eq!((facts.vendor.as_str(), facts.vectors.as_str()), ("AuthenticAMD", "avx,avx2,fma"));
    }
}
