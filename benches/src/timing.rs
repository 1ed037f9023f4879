//! Repeated measurements: medians of windows, the device waited for at the end of each.
//!
//! With `--serve` a window is run for every line on standard input and its seconds are printed, so that two processes
//! can take turns (`cargo xtask bench`).

use equipoise_base::{ExitCode, Result, ResultExt as _};
use equipoise_nn::runtime;
use serde_json::{Value, json};
use std::io::{BufRead as _, Write as _};
use std::time::Instant;
use tch::Device;

/// How often to measure.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Repeats {
    /// Windows measured; the median counts.
    #[arg(long, default_value_t = 5)]
    windows: usize,
    /// Rounds in a window.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Rounds before the first window.
    #[arg(long, default_value_t = 5)]
    warmup: usize,
    /// A window for each line on standard input, until it ends.
    #[arg(long)]
    serve: bool,
}

impl Repeats {
    /// Times `round`, which makes `images` images.
    ///
    /// # Errors
    /// Those of `round`.
    pub fn measure(self, images: i64, mut round: impl FnMut() -> Result<()>) -> Result<Value> {
        let window = |rounds: usize, round: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
            let start = Instant::now();
            (0..rounds).try_for_each(|_| round())?;
            wait();
            Ok(start.elapsed().as_secs_f64() / rounds.max(1) as f64)
        };
        window(self.warmup, &mut round)?;
        let mut seconds = Vec::new();
        match self.serve {
            true => {
                say(&json!({ "ready": true }))?;
                for line in std::io::stdin().lock().lines() {
                    line.or_exit(ExitCode::Io, "standard input")?;
                    seconds.push(window(self.rounds, &mut round)?);
                    say(&json!({ "seconds": seconds.last() }))?;
                }
            }
            false => {
                for _ in 0..self.windows.max(1) {
                    seconds.push(window(self.rounds, &mut round)?);
                }
            }
        }
        let median = median(&seconds);
        let deviations: Vec<f64> = seconds.iter().map(|second| (second - median).abs()).collect();
        Ok(json!({
            "images_per_s": images as f64 / median,
            "median_ms": 1e3 * median,
            "mad_ms": 1e3 * self::median(&deviations),
            "windows_ms": seconds.iter().map(|second| 1e3 * second).collect::<Vec<_>>(),
        }))
    }
}

/// Until the device has done all its work.
fn wait() {
    if let Device::Cuda(index) = runtime::device() {
        tch::Cuda::synchronize(index as i64);
    }
}

/// A line for whoever takes turns with this process.
fn say(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).or_exit(ExitCode::Io, "standard output")
}

/// The middle of some numbers; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2. }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(&[3., 1., 2.]), 2.);
        assert_eq!(median(&[4., 1., 2., 3.]), 2.5);
    }

    #[test]
    fn warm_up_and_windows_are_run() {
        let (mut rounds, repeats) = (0, Repeats { windows: 3, rounds: 4, warmup: 2, serve: false });
        let round = || {
            rounds += 1;
            Ok(())
        };
        let line = repeats.measure(8, round).unwrap();
        assert_eq!((rounds, line["windows_ms"].as_array().unwrap().len()), (14, 3));
        assert!(line["images_per_s"].as_f64().unwrap() > 0.);
    }
}
