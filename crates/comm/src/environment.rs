//! The environment that every rank is started with: what decides bits and what keeps ranks off each other's cores.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Instruction set that CPU kernels may use; part of the identity, since convolutions differ between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CpuCapability {
    /// The best that this machine has, decided when the run is begun and recorded in its configuration.
    Auto,
    /// Any x86-64 machine.
    Default,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// The same with products of bfloat16, without which precision = "bf16" is slower than "fp32".
    Avx512Bf16,
    /// The same with tiles of bfloat16.
    Avx512Amx,
}

impl CpuCapability {
    /// The best that this machine has.
    pub fn here() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let bf16 = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
            if !avx2 {
                CpuCapability::Default
            } else if !avx512 {
                CpuCapability::Avx2
            } else if !bf16 {
                CpuCapability::Avx512
            } else if !has_amx() {
                CpuCapability::Avx512Bf16
            } else {
                CpuCapability::Avx512Amx
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        CpuCapability::Default
    }

    /// What `auto` means on this machine; any other is itself.
    #[must_use]
    pub fn decided(self) -> Self {
        if self == CpuCapability::Auto { Self::here() } else { self }
    }

    /// As libtorch's ATEN_CPU_CAPABILITY spells it.
    pub fn aten(self) -> &'static str {
        match self.decided() {
            CpuCapability::Auto | CpuCapability::Default => "default",
            CpuCapability::Avx2 => "avx2",
            CpuCapability::Avx512 | CpuCapability::Avx512Bf16 | CpuCapability::Avx512Amx => "avx512",
        }
    }

    /// As oneDNN's ONEDNN_MAX_CPU_ISA spells it.
    pub fn onednn(self) -> &'static str {
        match self.decided() {
            CpuCapability::Auto | CpuCapability::Default => "SSE41",
            CpuCapability::Avx2 => "AVX2",
            CpuCapability::Avx512 => "AVX512_CORE",
            CpuCapability::Avx512Bf16 => "AVX512_CORE_BF16",
            CpuCapability::Avx512Amx => "AVX512_CORE_AMX",
        }
    }
}

impl fmt::Display for CpuCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CpuCapability::Auto => "auto",
            CpuCapability::Avx512Bf16 => "avx512_bf16",
            CpuCapability::Avx512Amx => "avx512_amx",
            other => other.aten(),
        })
    }
}

/// Whether this CPU multiplies tiles of bfloat16 and this kernel saves them; only the kernel knows both.
#[cfg(target_arch = "x86_64")]
fn has_amx() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    ["amx_tile", "amx_bf16"].iter().all(|needed| flags.split_whitespace().any(|flag| flag == *needed))
}

/// glibc returns large blocks to the kernel as soon as they are free, and every step of a training then waits for the
/// same pages again. It keeps them, in huge pages where the kernel has them: 8 % of a step of ResNet-50 on a CPU.
const KEEPING_MEMORY: [(&str, &str); 3] = [
    ("MALLOC_MMAP_THRESHOLD_", "1073741824"),
    ("MALLOC_TRIM_THRESHOLD_", "4294967296"),
    ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
];

/// Name and value of one environment variable.
pub type Variable = (String, String);

/// Variables for ranks with this many intra-op threads each; the sbatch script exports the same.
pub fn pinned(threads: usize, capability: Option<CpuCapability>) -> Vec<Variable> {
    let threads = threads.to_string();
    let mut variables = vec![
        ("OMP_NUM_THREADS", threads.as_str()),
        ("MKL_NUM_THREADS", threads.as_str()),
        // libgomp's threads would spin against the other ranks.
        ("OMP_WAIT_POLICY", "PASSIVE"),
        // Shards are written as bytes, so a file system without locks is no obstacle.
        ("HDF5_USE_FILE_LOCKING", "FALSE"),
    ];
    // A user's own choice stays: these change no bits.
    variables.extend(KEEPING_MEMORY.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()));
    if let Some(capability) = capability {
        variables.push(("ATEN_CPU_CAPABILITY", capability.aten()));
        variables.push(("ONEDNN_MAX_CPU_ISA", capability.onednn()));
    }
    // SAFETY: getuid has no preconditions.
    if unsafe { libc::getuid() } == 0 {
        // In a container one is root; OpenMPI wants to hear it twice.
        variables.push(("OMPI_ALLOW_RUN_AS_ROOT", "1"));
        variables.push(("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"));
    }
    variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_threads_and_instruction_set() {
        let variables = pinned(3, Some(CpuCapability::Avx2));
        let value = |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        assert_eq!(value("OMP_NUM_THREADS"), Some("3"));
        assert_eq!(value("ATEN_CPU_CAPABILITY"), Some("avx2"));
        assert_eq!(value("ONEDNN_MAX_CPU_ISA"), Some("AVX2"));
        assert!(pinned(1, None).iter().all(|(name, _)| name != "ATEN_CPU_CAPABILITY"));
    }

    #[test]
    fn auto_is_decided_and_bf16_has_levels_of_its_own() {
        assert_ne!(CpuCapability::Auto.decided(), CpuCapability::Auto);
        let (plain, bf16) = (CpuCapability::Avx512, CpuCapability::Avx512Bf16);
        assert_eq!((plain.aten(), bf16.aten()), ("avx512", "avx512"));
        assert_eq!((plain.onednn(), bf16.onednn()), ("AVX512_CORE", "AVX512_CORE_BF16"));
        assert_eq!(bf16.to_string(), "avx512_bf16");
        let amx = CpuCapability::Avx512Amx;
        assert_eq!(
            (amx.aten(), amx.onednn(), amx.to_string().as_str()),
            ("avx512", "AVX512_CORE_AMX", "avx512_amx")
        );
    }
}
