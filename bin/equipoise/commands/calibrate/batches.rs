//! Which batch size generates fastest: a ladder of sizes, climbed as long as time and memory allow.

use super::rehearse::{Rehearsed, Stage as Rehearsals};
use crate::cost::calibration::BatchSize;
use crate::output::{self, Format};
use equipoise_base::Result;
use equipoise_config::Stage;
use equipoise_report::pace::Rehearsal;
use equipoise_telemetry::Host;
use serde_json::json;
use std::str::FromStr;

/// A size is not tried if its rehearsal would probably take so many times what is measured of each kind of work.
const LONGEST: f64 = 8.0;
/// Nor if it would probably take more than this part of the memory.
const MOST_MEMORY: f64 = 0.8;
/// Batches that a rehearsal makes at least.
const BATCHES: f64 = 3.0;

/// Batch sizes to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder(Vec<u64>);

impl FromStr for Ladder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let size = |word: &str| match word.trim().parse::<u64>() {
            Ok(size) if (1..=1 << 20).contains(&size) => Ok(size),
            _ => Err(format!("'{word}' is no batch size: give numbers such as 8,16,32, or none")),
        };
        let mut sizes = text.split(',').map(size).collect::<Result<Vec<_>, _>>()?;
        sizes.sort_unstable();
        sizes.dedup();
        Ok(Self(sizes))
    }
}

/// Tries the sizes in ascending order with the settings of `stage`, of which `own` was measured at the recipe's size;
/// whether it was stopped on request. A size that fails ends the climb: it is told, and is no error.
///
/// # Errors
/// None of the rehearsals'.
pub fn climb(
    ladder: &Ladder,
    rehearsals: &mut Rehearsals<'_>,
    stage: &Stage,
    own: &Rehearsal,
    found: &mut Vec<BatchSize>,
    tell: &mut dyn FnMut(&BatchSize),
) -> Result<bool> {
    let (Some(current), Some(set)) = (stage.params["batch"].as_u64(), stage.params["set"].as_str()) else {
        return Ok(false);
    };
    if ladder.0.is_empty() {
        return Ok(false);
    }
    let mut sizes = ladder.0.clone();
    sizes.push(current);
    sizes.sort_unstable();
    sizes.dedup();
    let mut last = (current, own.clone());
    for batch in sizes {
        let mut tried = BatchSize {
            stage: stage.name.clone(),
            batch,
            current: batch == current,
            images_per_second: None,
            peak_memory: None,
            gpu_memory: None,
            why: None,
        };
        if batch == current {
            last = (current, own.clone());
            tried.fill(own);
        } else if let Some(why) = too_much(batch, &last, rehearsals.seconds()) {
            tried.why = Some(why);
        } else {
            match rehearsals.run(stage, &[format!("sets.{set}.batch={batch}")]) {
                Ok(Rehearsed::Done(rehearsal)) => {
                    tried.fill(&rehearsal);
                    last = (batch, rehearsal);
                }
                Ok(Rehearsed::Nothing) => tried.why = Some("nothing to do".into()),
                Ok(Rehearsed::Stopped) => return Ok(true),
                Err(error) => tried.why = Some(error.message().to_string()),
            }
        }
        tell(&tried);
        let ended = tried.why.is_some() && batch > current;
        found.push(tried);
        if ended {
            break;
        }
    }
    Ok(false)
}

impl BatchSize {
    fn fill(&mut self, rehearsal: &Rehearsal) {
        self.images_per_second = Some(self.batch as f64 * rehearsal.ranks as f64 / rehearsal.pace.seconds);
        self.peak_memory = Some(rehearsal.peak_memory);
        self.gpu_memory = rehearsal.gpu_memory;
    }
}

/// Why a batch size is not worth a try, from the largest one so far: time and memory grow with it at most.
fn too_much(batch: u64, (last, measured): &(u64, Rehearsal), seconds: f64) -> Option<String> {
    let ratio = batch as f64 / *last as f64;
    if ratio <= 1.0 {
        return None;
    }
    let time = BATCHES * measured.pace.seconds * ratio;
    if time > LONGEST * seconds {
        return Some(format!("would take about {time:.0} s to measure; give more --seconds"));
    }
    let host = measured.peak_memory as f64 * ratio * measured.ranks as f64;
    if host > MOST_MEMORY * Host::here().memory as f64 {
        return Some("would need too much memory".into());
    }
    let gpu = measured.gpu_memory.zip(measured.gpu_total);
    let full = gpu.is_some_and(|(used, total)| used as f64 * ratio > MOST_MEMORY * total as f64);
    // Where ranks share a GPU the first number already is the sum of theirs.
    full.then(|| "would need too much memory of the GPU".into())
}

/// One rung.
pub fn show(format: Format, tried: &BatchSize) {
    if format == Format::Json {
        output::json(&json!({ "batch_size": tried }));
        return;
    }
    let memory = |bytes: Option<u64>| bytes.map(output::bytes);
    let found = match (&tried.why, tried.images_per_second) {
        (Some(why), _) => why.clone(),
        (None, Some(rate)) => {
            let gpu =
                memory(tried.gpu_memory).map(|bytes| format!(", {bytes} of its GPU")).unwrap_or_default();
            let own = if tried.current { "   (the recipe's)" } else { "" };
            format!("{rate:8.1} images/s, {} a rank{gpu}{own}", memory(tried.peak_memory).unwrap_or_default())
        }
        (None, None) => "not measured".into(),
    };
    output::line(format!("      {}, batch {:>4}: {found}", tried.stage, tried.batch));
}

/// The fastest size of each stage. Of sizes within a few percent of it, the smallest: it needs less memory, and a kill
/// costs less.
pub fn best(tried: &[BatchSize]) -> Vec<&BatchSize> {
    const ALIKE: f64 = 0.97;
    let mut stages: Vec<&str> = tried.iter().map(|tried| tried.stage.as_str()).collect();
    stages.dedup();
    let fastest = |stage: &&str| {
        let rates =
            || tried.iter().filter(|tried| tried.stage == *stage && tried.images_per_second.is_some());
        let top = rates().filter_map(|tried| tried.images_per_second).fold(0.0, f64::max);
        rates().filter(|tried| tried.images_per_second >= Some(top * ALIKE)).min_by_key(|tried| tried.batch)
    };
    stages.iter().filter_map(fastest).collect()
}

/// What to do about it.
pub fn advice(best: &BatchSize, tried: &[BatchSize]) -> String {
    let current = tried.iter().find(|other| other.stage == best.stage && other.current);
    let gain = best.images_per_second.zip(current.and_then(|current| current.images_per_second));
    match gain {
        _ if best.current => {
            format!("{}: the recipe's batch of {} is the fastest tried", best.stage, best.batch)
        }
        Some((best_rate, own)) => format!(
            "{}: a batch of {} would generate {:.0} % faster than the recipe's; it would make other images (--set generate.batch={})",
            best.stage,
            best.batch,
            100.0 * (best_rate / own - 1.0),
            best.batch
        ),
        None => format!("{}: a batch of {} is the fastest tried", best.stage, best.batch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rung(batch: u64, rate: Option<f64>) -> BatchSize {
        BatchSize {
            stage: "generate.a.k0".into(),
            batch,
            current: batch == 16,
            images_per_second: rate,
            peak_memory: None,
            gpu_memory: None,
            why: None,
        }
    }

    #[test]
    fn the_smallest_of_the_fast_ones_is_the_best() {
        let rungs = [rung(8, Some(50.0)), rung(16, Some(98.0)), rung(32, Some(100.0)), rung(64, None)];
        assert_eq!(best(&rungs).iter().map(|rung| rung.batch).collect::<Vec<_>>(), [16]);
        assert!(advice(&rungs[1], &rungs).contains("the recipe's batch of 16 is the fastest"));
        let rungs = [rung(16, Some(50.0)), rung(32, Some(100.0))];
        assert!(advice(best(&rungs)[0], &rungs).contains("100 % faster"));
        assert!(best(&[rung(16, None)]).is_empty());
    }

    #[test]
    fn ladders_are_numbers_or_none() {
        assert_eq!("32, 8,8".parse::<Ladder>(), Ok(Ladder(vec![8, 32])));
        assert_eq!("none".parse::<Ladder>(), Ok(Ladder(vec![])));
        for wrong in ["", "0", "8,x", "-1"] {
            assert!(wrong.parse::<Ladder>().is_err(), "{wrong}");
        }
    }
}
