//! The live processes that a test has started, wherever they have gone: found by an environment variable.
//!
//! Process groups, sessions and parents change under mpirun and after a crash; the environment does not. So an orphan
//! check sees everything, and a random kill never hits a process of anybody else.

use equipoise_base::rng::Key;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// Name of the variable.
pub const VARIABLE: &str = "EQUIPOISE_TEST_MARK";

/// The kernel's flag, in `/proc/PID/stat`, of its own threads; they never have an environment.
const PF_KTHREAD: u64 = 0x0020_0000;

/// A mark no other test carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker(String);

/// A live process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its process id.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Its command line, words joined by spaces.
    pub command: String,
}

impl Default for Marker {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Marker {
    /// Lets a command, and everything that it starts, carry the mark.
    pub fn put_on(&self, command: &mut Command) {
        command.env(VARIABLE, &self.0);
    }

    /// All live processes that carry the mark, by pid; zombies are not alive.
    pub fn live(&self) -> Vec<Found> {
        let mark = format!("{VARIABLE}={}", self.0);
        let carries =
            |environment: &[u8]| environment.split(|&byte| byte == 0).any(|entry| entry == mark.as_bytes());
        pids().into_iter().filter_map(|pid| look_at(pid, carries)).collect()
    }

    /// SIGKILLs one live process that `eligible` accepts, chosen by `key`; its pid, or none if there is none.
    pub fn kill_one(&self, key: Key<'_>, eligible: impl Fn(&Found) -> bool) -> Option<i32> {
        let candidates: Vec<Found> = self.live().into_iter().filter(|process| eligible(process)).collect();
        let chosen = candidates.get(key.stream().below(candidates.len().max(1) as u64) as usize)?;
        send(chosen.pid, libc::SIGKILL);
        Some(chosen.pid)
    }

    /// SIGKILLs everything that carries the mark.
    pub fn kill_all(&self) {
        for process in self.live() {
            send(process.pid, libc::SIGKILL);
        }
    }
}

/// All live processes of this machine, by pid; zombies are not alive.
pub fn all() -> Vec<Found> {
    pids().into_iter().filter_map(|pid| look_at(pid, |_| true)).collect()
}

fn pids() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return vec![] };
    let mut pids: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// A live process whose environment is accepted.
fn look_at(pid: i32, accept: impl Fn(&[u8]) -> bool) -> Option<Found> {
    let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).ok();
    loop {
        let environment = read("environ")?;
        let stat = String::from_utf8_lossy(&read("stat")?).into_owned();
        // After the name, which may hold anything: from field 3 on, the state.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let flags: u64 = field(9)?.parse().ok()?;
        if matches!(field(3)?, "Z" | "X") || flags & PF_KTHREAD != 0 {
            return None;
        }
        // In the middle of an exec the environment is empty and its end unknown; the process would be missed.
        if environment.is_empty() && field(51) == Some("0") {
            std::thread::yield_now();
            continue;
        }
        if !accept(&environment) {
            return None;
        }
        let command = String::from_utf8_lossy(&read("cmdline")?).replace('\0', " ").trim_end().to_string();
        return Some(Found { pid, parent: field(4)?.parse().ok()?, command });
    }
}

/// Sends a signal; a process that has just gone is no matter.
pub fn send(pid: i32, signal: i32) {
    // SAFETY: kill has no memory preconditions.
    unsafe { libc::kill(pid, signal) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait_until;
    use std::time::Duration;

    #[test]
    fn finds_and_kills_only_its_own() {
        let (own, other) = (Marker::default(), Marker::default());
        let start = |marker: &Marker| {
            let mut command = Command::new("sh");
            command.args(["-c", "sleep 60 & sleep 60"]);
            marker.put_on(&mut command);
            command.spawn().unwrap()
        };
        let (mut ours, mut theirs) = (start(&own), start(&other));
        let sleeper = |found: &Found| found.command.starts_with("sleep");
        // A forked shell carries the mark before it has become a sleeper.
        let complete = |marker: &Marker| {
            let live = marker.live();
            live.len() == 3 && live.iter().filter(|found| sleeper(found)).count() == 2
        };
        wait_until("two trees of three", Duration::from_secs(30), || complete(&own) && complete(&other));
        assert!(own.kill_one(Key::new(0, "kill"), sleeper).is_some());
        assert!(own.kill_one(Key::new(0, "kill"), |found| found.pid == theirs.id() as i32).is_none());
        own.kill_all();
        ours.wait().unwrap();
        wait_until("own tree gone", Duration::from_secs(30), || own.live().is_empty());
        assert_eq!(other.live().len(), 3);
        other.kill_all();
        theirs.wait().unwrap();
    }
}
