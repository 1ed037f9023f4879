//! Who a process is, and whether it is gone.

use serde::{Deserialize, Serialize};

/// A process, told apart from every other one of any host and any boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Host name.
    pub host: String,
    /// Boot id of the host's kernel: a rebooted host runs none of its earlier processes.
    pub boot: String,
    /// Process-id namespace: inside a container, ids mean nothing outside.
    pub namespace: String,
    /// Process id within the namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot: ids are reused, (id, start) is not.
    pub start: u64,
}

impl Process {
    /// This process.
    pub fn current() -> Self {
        let pid = std::process::id();
        let namespace = std::fs::read_link("/proc/self/ns/pid");
        Self {
            host: host_name(),
            boot: read_trimmed("/proc/sys/kernel/random/boot_id"),
            namespace: namespace.map_or_else(|_| String::new(), |link| link.display().to_string()),
            pid,
            start: state_and_start(pid).map_or(0, |(_, start)| start),
        }
    }

    /// A process of this machine, if it is running.
    pub fn running(pid: u32) -> Option<Self> {
        let start = state_and_start(pid).map_or(0, |(_, start)| start);
        let process = Self { pid, start, ..Self::current() };
        is_running(&process).then_some(process)
    }

    /// Whether `other` certainly no longer runs, as far as this machine can know: it ran on this very boot, in this
    /// process's namespace, and its id is free or in other hands. False when in doubt.
    pub fn sees_gone(&self, other: &Process) -> bool {
        let comparable = !self.boot.is_empty()
            && !self.namespace.is_empty()
            && (&self.host, &self.boot, &self.namespace) == (&other.host, &other.boot, &other.namespace);
        comparable && !is_running(other)
    }
}

/// `/proc` may hide other users' processes (hidepid), so only `kill` may say that an id is free.
fn is_running(process: &Process) -> bool {
    let Ok(pid) = libc::pid_t::try_from(process.pid) else { return false };
    if pid <= 0 {
        return false;
    }
    // SAFETY: signal 0 checks for existence and delivers nothing.
    let delivered = unsafe { libc::kill(pid, 0) } == 0;
    if !delivered && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH) {
        return false;
    }
    match state_and_start(process.pid) {
        // A zombie has ended; its parent has not looked yet.
        Some((state, start)) => !matches!(state, 'Z' | 'X') && start == process.start,
        None => true,
    }
}

/// Fields 3 and 22 of `/proc/<pid>/stat`. The second field is a name in parentheses that may hold anything.
fn state_and_start(pid: u32) -> Option<(char, u64)> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn read_trimmed(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| String::new(), |text| text.trim().to_string())
}

fn host_name() -> String {
    let mut buffer = [0u8; 256];
    // SAFETY: the buffer is valid for its length.
    if unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) } != 0 {
        return "unknown".to_string();
    }
    let end = buffer.iter().position(|&byte| byte == 0).unwrap_or(buffer.len());
    String::from_utf8_lossy(&buffer[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_running_and_a_reused_id_is_not() {
        let me = Process::current();
        assert!(me.start > 0 && !me.boot.is_empty() && !me.host.is_empty(), "{me:?}");
        assert!(!me.sees_gone(&me));
        assert!(me.sees_gone(&Process { start: me.start + 1, ..me.clone() }));
    }

    #[test]
    fn an_ended_child_is_gone_even_before_it_is_reaped() {
        let me = Process::current();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start = state_and_start(child.id()).unwrap().1;
        let process = Process { pid: child.id(), start, ..me.clone() };
        assert!(!me.sees_gone(&process));
        child.kill().unwrap();
        while state_and_start(child.id()).is_some_and(|(state, _)| state != 'Z') {
            std::thread::yield_now();
        }
        assert!(me.sees_gone(&process), "a zombie counts as gone");
        child.wait().unwrap();
        assert!(me.sees_gone(&process));
    }

    #[test]
    fn other_hosts_boots_and_containers_are_never_judged() {
        let me = Process::current();
        let gone = Process { start: me.start + 1, ..me.clone() };
        assert!(!me.sees_gone(&Process { host: "elsewhere".into(), ..gone.clone() }));
        assert!(!me.sees_gone(&Process { boot: "earlier".into(), ..gone.clone() }));
        assert!(!me.sees_gone(&Process { namespace: "pid:[1]".into(), ..gone }));
    }
}
