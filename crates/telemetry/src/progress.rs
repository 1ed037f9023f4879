//! Progress of long work: a bar on a terminal, one line per interval in a log.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// A line is written this often when nobody watches a terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Counts finished units and shows them.
#[derive(Debug)]
pub struct Progress {
    unit: &'static str,
    total: u64,
    /// Units that were done before this attempt: they say nothing about its rate.
    inherited: u64,
    done: u64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

/// Progress at one moment, as `status.json` tells it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Snapshot {
    /// Finished units, earlier attempts included.
    pub done: u64,
    /// All units of the stage.
    pub total: u64,
    /// Units per second of this attempt.
    pub rate: f64,
    /// Seconds to go at that rate; `None` before anything was done.
    pub eta: Option<f64>,
}

impl Progress {
    /// Starts at `done` of `total`; only a `visible` progress (rank 0) prints anything.
    pub fn new(what: &str, unit: &'static str, done: u64, total: u64, visible: bool) -> Self {
        let bar = (visible && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(total).with_position(done).with_message(what.to_string());
            let style = "{msg:<28} {wide_bar:.green/dim} {pos}/{len} {per_sec:>10} eta {eta}";
            bar.with_style(
                ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
            )
        });
        let now = Instant::now();
        Self { unit, total, inherited: done, done, started: now, last_line: now, bar }
    }

    /// Sets the count; the line is due every 30 s and at the end.
    pub fn set(&mut self, done: u64) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.last_line.elapsed() >= LOG_INTERVAL {
            self.last_line = Instant::now();
            let Snapshot { done, total, rate, eta } = self.snapshot();
            let eta = eta.map_or_else(|| "unknown".into(), human_duration);
            tracing::info!("{done}/{total} {}, {rate:.1}/s, {eta} to go", self.unit);
        }
    }

    /// Numbers for `status.json`.
    pub fn snapshot(&self) -> Snapshot {
        let seconds = self.started.elapsed().as_secs_f64();
        let fresh = self.done.saturating_sub(self.inherited);
        let rate = if seconds > 0. { fresh as f64 / seconds } else { 0. };
        let eta = (fresh > 0).then(|| self.total.saturating_sub(self.done) as f64 / rate);
        Snapshot { done: self.done, total: self.total, rate, eta }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `1:02:03`, `2 min 5 s`, `7.3 s`.
pub fn human_duration(seconds: f64) -> String {
    let whole = seconds.max(0.).round() as u64;
    match whole {
        0..60 => format!("{:.1} s", seconds.max(0.)),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherited_units_do_not_count_as_speed() {
        let mut progress = Progress::new("x", "images", 90, 100, false);
        assert_eq!(progress.snapshot().eta, None);
        std::thread::sleep(Duration::from_millis(20));
        progress.set(95);
        let snapshot = progress.snapshot();
        assert!(snapshot.rate < 5. / 0.02 + 1., "{}", snapshot.rate);
        assert!(snapshot.eta.is_some());
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(human_duration(7.31), "7.3 s");
        assert_eq!(human_duration(125.), "2 min 5 s");
        assert_eq!(human_duration(3723.), "1:02:03");
    }
}
