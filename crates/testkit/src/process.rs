//! A process under test: output captured, every wait bounded, nothing left behind.

use crate::tree::{self, Found, Marker};
use equipoise_base::rng::Key;
use std::fs::File;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// A running command with all its descendants. Dropping it kills them.
#[derive(Debug)]
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
    marker: Marker,
    output: NamedTempFile,
}

impl Process {
    /// Starts `command`, marked, with stdout and stderr captured together.
    ///
    /// # Panics
    /// If it cannot start.
    pub fn spawn(mut command: Command) -> Self {
        let marker = Marker::default();
        marker.put_on(&mut command);
        let output = NamedTempFile::new().unwrap_or_else(|error| panic!("no temporary file: {error}"));
        let handle =
            || -> File { output.reopen().unwrap_or_else(|error| panic!("log of a process: {error}")) };
        // Appending, so that several writers do not overwrite each other.
        let append = append_only(handle());
        let copy = append.try_clone().unwrap_or_else(|error| panic!("log of a process: {error}"));
        command.stdin(Stdio::null()).stdout(append).stderr(copy);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, status: None, marker, output }
    }

    /// Process id of the command itself.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it and its descendants have printed so far.
    pub fn output(&self) -> String {
        let bytes = std::fs::read(self.output.path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends a signal to the command itself, unless it has ended.
    pub fn signal(&mut self, signal: i32) {
        if self.try_wait().is_none() {
            tree::send(self.pid(), signal);
        }
    }

    /// Exit status, if it has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Waits for the end of the command itself.
    ///
    /// # Panics
    /// With its output, if it takes longer than `bound`.
    pub fn wait(&mut self, bound: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_wait() {
                return status;
            }
            assert!(start.elapsed() < bound, "still running after {bound:?}; output:\n{}", self.output());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the output holds `text`.
    ///
    /// # Panics
    /// With the output, if the command ends or `bound` passes without it.
    pub fn wait_for_output(&mut self, text: &str, bound: Duration) {
        let start = Instant::now();
        loop {
            // In this order: what was printed right before the end counts.
            let ended = self.try_wait();
            let output = self.output();
            if output.contains(text) {
                return;
            }
            assert!(ended.is_none(), "ended ({ended:?}) without printing {text:?}; output:\n{output}");
            assert!(start.elapsed() < bound, "no {text:?} within {bound:?}; output:\n{output}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The command and all its descendants that are alive, orphans included.
    pub fn live(&self) -> Vec<Found> {
        self.marker.live()
    }

    /// SIGKILLs one descendant that `eligible` accepts (never the command itself), chosen by `key`; its pid.
    pub fn kill_child(&self, key: Key<'_>, eligible: impl Fn(&Found) -> bool) -> Option<i32> {
        let own = self.pid();
        self.marker.kill_one(key, |found| found.pid != own && eligible(found))
    }

    /// Waits until nothing that the command started is alive.
    ///
    /// # Panics
    /// With the list of what still is, after `bound`.
    pub fn wait_for_no_orphans(&mut self, bound: Duration) {
        let start = Instant::now();
        loop {
            self.try_wait();
            let live = self.live();
            if live.is_empty() {
                return;
            }
            assert!(start.elapsed() < bound, "alive after {bound:?}: {live:#?}\noutput:\n{}", self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.marker.kill_all();
        // Already reaped is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn append_only(file: File) -> File {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the descriptor is open, and F_SETFL takes an integer.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_APPEND) };
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn(command)
    }

    const BOUND: Duration = Duration::from_secs(30);

    #[test]
    fn status_and_output() {
        let mut process = shell("echo out; echo err >&2; exit 7");
        assert_eq!(process.wait(BOUND).code(), Some(7));
        assert_eq!(process.output(), "out\nerr\n");
    }

    #[test]
    fn signals_reach_it() {
        let mut process = shell("trap 'exit 75' USR2; echo ready; while :; do sleep 0.02; done");
        process.wait_for_output("ready", BOUND);
        process.signal(libc::SIGUSR2);
        assert_eq!(process.wait(BOUND).code(), Some(75));
    }

    #[test]
    fn orphans_are_seen_and_dropped_processes_are_gone() {
        let mut process = shell("setsid sleep 60 & echo $!");
        process.wait(BOUND);
        assert_eq!(process.live().len(), 1);
        let marker = process.marker.clone();
        drop(process);
        crate::wait_until("orphan killed", BOUND, || marker.live().is_empty());
    }

    #[test]
    #[should_panic(expected = "without printing \"never\"; output:\nhello")]
    fn a_missing_line_fails_with_the_output() {
        shell("echo hello").wait_for_output("never", BOUND);
    }
}
