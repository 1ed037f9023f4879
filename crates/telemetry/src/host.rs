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

/// Seconds since this process was started, before its libraries were loaded; 0 where the system does not tell.
pub fn process_seconds() -> f64 {
    /// Ticks of `/proc/self/stat` in a second: USER_HZ, the same on all of Linux's architectures that we run on.
    const TICKS: f64 = 100.;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    // The name, field 2, may contain blanks; behind its bracket the start time is the 20th of the rest.
    let stat = read("/proc/self/stat");
    let started =
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse::<f64>().ok());
    let uptime = read("/proc/uptime").split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    started.zip(uptime).map_or(0., |(started, uptime)| (uptime - started / TICKS).max(0.))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_grows_older() {
        let before = process_seconds();
        std::thread::sleep(std::time::Duration::from_millis(60));
        let age = process_seconds() - before;
        assert!(before < 600. && (0.03..5.).contains(&age), "{before} {age}");
    }
}
