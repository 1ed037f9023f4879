//! Where the time of attempts goes that is of no use: from what the jobs and the ranks have written.

use anyhow::Result;
use equipoise_rundir::work::Span;
use equipoise_rundir::{RealFs, RunDir, StageDir, Vfs as _, journal};
use serde_json::Value;
use std::fmt;
use std::ops::AddAssign;

/// Seconds of attempts, summed, and of how many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Phases {
    /// From the batch script to the lease: srun, libtorch, MPI, owner.
    start: Mean,
    /// From the lease to the first unit: inputs, weights, checking what is there.
    prepare: Mean,
    /// From the last commit to the end of the script: MPI, srun, the requeue. Not of those that were killed.
    leave: Mean,
    /// From the end of a script to the next start of its job, when nothing of the run is alive.
    queue: Mean,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: usize,
    largest: f64,
}

impl Mean {
    fn add(&mut self, from: Option<f64>, until: Option<f64>) {
        // An end before its beginning belongs to another attempt.
        let Some(seconds) = from.zip(until).map(|(from, until)| until - from).filter(|took| *took >= 0.0)
        else {
            return;
        };
        self.sum += seconds;
        self.count += 1;
        self.largest = self.largest.max(seconds);
    }
}

impl AddAssign for Mean {
    fn add_assign(&mut self, other: Self) {
        self.sum += other.sum;
        self.count += other.count;
        self.largest = self.largest.max(other.largest);
    }
}

impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sum, count, largest } = self;
        write!(
            f,
            "{sum:.0} s ({count} times, {:.1} s each, {largest:.1} s at most)",
            sum / (*count).max(1) as f64
        )
    }
}

impl AddAssign for Phases {
    fn add_assign(&mut self, other: Self) {
        self.start += other.start;
        self.prepare += other.prepare;
        self.leave += other.leave;
        self.queue += other.queue;
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  script to lease:       {}", self.start)?;
        writeln!(f, "  lease to first unit:   {}", self.prepare)?;
        writeln!(f, "  last commit to end:    {}", self.leave)?;
        write!(f, "  requeue to next start: {}", self.queue)
    }
}

/// Of all stages of a run.
pub fn of_run(run: &RunDir) -> Result<Phases> {
    let mut phases = Phases::default();
    for stage in run.stages(&RealFs)? {
        let name = stage.key().to_string();
        let jobs = journal::read::<Value>(&RealFs, &run.slurm().join(format!("{name}.jsonl")))?.records;
        let attempts = journal::read::<Value>(&RealFs, &stage.journal())?.records;
        for (at, job) in jobs.iter().enumerate().filter(|(_, job)| job["event"] == "begin") {
            let script = job["wall"].as_f64();
            let before =
                jobs[..at].last().filter(|before| before["requeued"] == true && before["job"] == job["job"]);
            phases.queue.add(before.and_then(|before| before["wall"].as_f64()), script);
            let next = jobs[at + 1..].iter().find(|job| job["event"] == "begin");
            let until = next.and_then(|job| job["wall"].as_f64()).unwrap_or(f64::INFINITY);
            let within = |wall: f64| script.is_some_and(|script| script <= wall) && wall < until;
            let attempt = attempts
                .iter()
                .find(|event| event["event"] == "attempt" && event["wall"].as_f64().is_some_and(within));
            let Some(attempt) = attempt else { continue };
            let lease = attempt["wall"].as_f64();
            phases.start.add(script, lease);
            let (first, last) = extent(&stage, attempt["attempt"].as_u64().unwrap_or(0))?;
            phases.prepare.add(lease, first);
            let end = jobs[at + 1..].iter().take_while(|job| job["event"] != "begin");
            let end = end.filter(|job| job["event"] == "end").find_map(|job| job["wall"].as_f64());
            phases.leave.add(last, end);
        }
    }
    Ok(phases)
}

/// When the first unit of an attempt was begun and the last one committed.
fn extent(stage: &StageDir, attempt: u64) -> Result<(Option<f64>, Option<f64>)> {
    let (mut first, mut last) = (None::<f64>, None::<f64>);
    let folder = stage.work().join(attempt.to_string());
    for rank in RealFs.list_if_exists(&folder)? {
        for span in journal::read::<Span>(&RealFs, &folder.join(&rank.name))?.records {
            let begun = span.wall - span.seconds;
            first = Some(first.map_or(begun, |first| first.min(begun)));
            last = Some(last.map_or(span.wall, |last| last.max(span.wall)));
        }
    }
    Ok((first, last))
}
