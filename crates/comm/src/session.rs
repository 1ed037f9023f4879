//! All processes of one session, found through /proc.
//!
//! mpirun puts every rank into a process group of its own, but none of them leaves the session: what a step started
//! is exactly its session, and nothing else is ever hit.

use std::time::{Duration, Instant};

/// Live processes (zombies left out) whose session is `session`, by pid.
pub fn members(session: libc::pid_t) -> Vec<libc::pid_t> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return vec![] };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| live_session(pid) == Some(session)).collect()
}

/// Sends SIGKILL to the whole session until nobody is left, so that a process forked meanwhile is hit too; false if
/// some are still there after `bound`.
pub fn kill(session: libc::pid_t, bound: Duration) -> bool {
    let start = Instant::now();
    loop {
        let pids = members(session);
        if pids.is_empty() {
            return true;
        }
        for pid in pids {
            // SAFETY: kill has no memory preconditions; a process that has just gone is no matter.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        if start.elapsed() > bound {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Session of a process that is alive, from `/proc/PID/stat`: `pid (command) state ppid pgrp session ...`.
fn live_session(pid: libc::pid_t) -> Option<libc::pid_t> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command may hold spaces and parentheses; the last one ends it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(2)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    #[test]
    fn kills_grandchildren_in_other_process_groups() {
        let mut command = Command::new("bash");
        command.args(["-c", "set -m; sleep 100 & sleep 100 & wait"]).stderr(Stdio::null());
        // SAFETY: setsid is async-signal-safe.
        unsafe {
            command
                .pre_exec(|| if libc::setsid() < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) })
        };
        let mut child = command.spawn().unwrap();
        let session = child.id() as i32;
        let start = Instant::now();
        while members(session).len() < 3 {
            assert!(start.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(kill(session, Duration::from_secs(5)));
        assert!(members(session).is_empty());
        child.wait().unwrap();
    }

    #[test]
    fn this_process_is_in_its_session() {
        // SAFETY: getsid has no preconditions.
        let session = unsafe { libc::getsid(0) };
        assert_eq!(live_session(std::process::id() as i32), Some(session));
    }
}
