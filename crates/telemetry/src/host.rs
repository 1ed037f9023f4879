//! Facts about the machine, for provenance and cost.

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// The machine a step ran on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Host name.
    pub name: String,
    /// Model of the first CPU.
    pub cpu: String,
    /// Logical CPUs that this process may use.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// Operating system and kernel.
    pub system: String,
}

impl Host {
    /// Reads the facts of this machine.
    pub fn here() -> Self {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing())
            .with_memory(MemoryRefreshKind::everything());
        let system = System::new_with_specifics(kinds).ok();
        let cpu = system.as_ref().and_then(|system| system.cpus().first()).map(|cpu| cpu.brand().to_string());
        Self {
            name: System::host_name().unwrap_or_default(),
            cpu: cpu.unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: system.map_or(0, |system| system.total_memory()),
            system: System::long_os_version().unwrap_or_default(),
        }
    }
}

/// Largest resident size that this process has had, in bytes; 0 where the system does not tell.
pub fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
