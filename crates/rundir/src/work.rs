//! What of a run's time was of use: `work/<attempt>/rank-0000.jsonl`, read by soaks and by whoever wonders where time goes.
//!
//! A rank notes a span when what it has finished is committed: which units, and how long they took. Attempts that come
//! later make some units again; then only the last time counts. Everything that is in no span (start-up, checking what
//! is there, what was lost, waiting for others, leaving) was of no use. Seconds of the run itself, not those of another,
//! quieter one: so the quotient with the time that the run was alive means the same on a machine that others use too.
//!
//! Nothing depends on these files, so they are written without syncing: a power loss makes a run look less useful.

use crate::journal;
use crate::layout::{RunDir, StageDir};
use crate::vfs::Vfs;
use equipoise_base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Units that one rank has finished and committed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// What the units are part of, such as a shard; units of different names are different ones.
    pub of: String,
    /// First unit: an image, a step.
    pub from: u64,
    /// One more than the last.
    pub until: u64,
    /// How long they took, their commit included.
    pub seconds: f64,
    /// For what part of the attempt's ranks it stands: one of n where each works by itself, 1 where all work in step
    /// and one of them notes it.
    pub share: f64,
    /// When it was committed, in seconds since 1970: to tell two times within an attempt apart.
    pub wall: f64,
}

/// Seconds by what they were good for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// On units whose result was kept.
    pub useful: f64,
    /// On units that were committed and made again nevertheless, such as steps after the last checkpoint.
    pub superseded: f64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.useful += other.useful;
        self.superseded += other.superseded;
    }
}

/// What all stages of a run have done so far. Seconds of ranks that work side by side are averaged over the ranks of their
/// attempt; tasks of an array, which are jobs of their own, are added up.
///
/// # Errors
/// 74 if something cannot be read. Lines that a kill has cut off are left out.
pub fn of_run(vfs: &dyn Vfs, run: &RunDir) -> Result<Work> {
    let mut work = Work::default();
    for stage in run.stages(vfs)? {
        work += of_stage(vfs, &stage)?;
    }
    Ok(work)
}

/// As [`of_run`], for one stage.
///
/// # Errors
/// As [`of_run`].
pub fn of_stage(vfs: &dyn Vfs, stage: &StageDir) -> Result<Work> {
    let list =
        |path: &std::path::Path| vfs.list_if_exists(path).map_err(|error| Error::io("list", path, error));
    let tasks = list(&stage.tasks())?;
    let tasks = tasks.iter().filter_map(|entry| Some(stage.task(entry.name.parse().ok()?)));
    let mut spans = Vec::new();
    for records in std::iter::once(stage.clone()).chain(tasks) {
        for attempt in list(&records.work())? {
            let Ok(number) = attempt.name.parse::<u64>() else { continue };
            let folder = records.work().join(&attempt.name);
            for rank in list(&folder)? {
                let read = journal::read::<Span>(vfs, &folder.join(&rank.name))?;
                spans.extend(read.records.into_iter().map(|span| (number, span)));
            }
        }
    }
    Ok(add_up(spans))
}

/// Units count where they were made last: in the highest attempt, and the latest within one.
fn add_up(mut spans: Vec<(u64, Span)>) -> Work {
    spans.sort_by(|(a, x), (b, y)| b.cmp(a).then(y.wall.total_cmp(&x.wall)));
    let mut kept: BTreeMap<String, Vec<Range<u64>>> = BTreeMap::new();
    let mut work = Work::default();
    for (_, span) in spans {
        let units = span.from..span.until.max(span.from + 1);
        let later = kept.entry(span.of).or_default();
        let again: u64 = later
            .iter()
            .map(|other| other.end.min(units.end).saturating_sub(other.start.max(units.start)))
            .sum();
        let all = (units.end - units.start) as f64;
        let seconds = span.seconds * span.share;
        work.superseded += seconds * again as f64 / all;
        work.useful += seconds * (all - again as f64) / all;
        cover(later, units);
    }
    work
}

/// Adds a range to ranges that do not overlap.
fn cover(ranges: &mut Vec<Range<u64>>, new: Range<u64>) {
    let (touching, mut apart): (Vec<_>, Vec<_>) =
        ranges.drain(..).partition(|old| old.start <= new.end && new.start <= old.end);
    let start = touching.iter().map(|old| old.start).fold(new.start, u64::min);
    let end = touching.iter().map(|old| old.end).fold(new.end, u64::max);
    apart.push(start..end);
    *ranges = apart;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultFs;
    use crate::layout::StageKey;
    use std::path::Path;

    fn span(of: &str, units: Range<u64>, seconds: f64, wall: f64) -> Span {
        Span { of: of.into(), from: units.start, until: units.end, seconds, share: 1.0, wall }
    }

    #[test]
    fn steps_made_again_count_once_and_pro_rata() {
        // A kill after step 30 lost 25..30; the second attempt took them up again.
        let work = add_up(vec![
            (1, span("", 0..20, 20.0, 1.0)),
            (1, span("", 20..30, 10.0, 2.0)),
            (2, span("", 25..40, 30.0, 3.0)),
        ]);
        assert_eq!(work, Work { useful: 20.0 + 5.0 + 30.0, superseded: 5.0 });
    }

    #[test]
    fn ranges_covered_by_several_later_spans_are_not_counted_twice() {
        let work = add_up(vec![
            (1, span("", 0..10, 10.0, 1.0)),
            (2, span("", 4..8, 4.0, 2.0)),
            (3, span("", 2..6, 4.0, 3.0)),
            (3, span("", 6..7, 1.0, 4.0)),
        ]);
        // Of the first span 0..2 and 8..10 are left, of the second 7..8.
        assert_eq!(work, Work { useful: 4.0 + 1.0 + 4.0 + 1.0, superseded: 6.0 + 3.0 });
    }

    #[test]
    fn shards_are_different_units_and_the_latest_of_an_attempt_counts() {
        let work = add_up(vec![
            (1, span("a", 0..8, 8.0, 1.0)),
            (1, span("b", 0..8, 6.0, 2.0)),
            (1, span("b", 0..8, 7.0, 9.0)),
        ]);
        assert_eq!(work, Work { useful: 15.0, superseded: 6.0 });
        assert_eq!(add_up(vec![]), Work::default());
    }

    #[test]
    fn all_stages_ranks_and_tasks_are_read_and_torn_lines_left_out() {
        let (fs, run) = (FaultFs::new(), RunDir::new("/run"));
        let put = |path: &Path, text: &str| {
            crate::create_dirs(&fs, path.parent().unwrap()).unwrap();
            fs.create_new(path).unwrap().write_all(text.as_bytes()).unwrap();
        };
        let line =
            |share: f64| serde_json::to_string(&Span { share, ..span("a", 0..4, 2.0, 1.0) }).unwrap() + "\n";
        let stage = run.stage(&StageKey::new("generate").unwrap());
        put(&stage.work_of(1, 0), &(line(0.5) + "{\"of\":\"b\",\"fr"));
        put(&stage.work_of(1, 1), &line(0.5).replace("\"a\"", "\"c\""));
        put(&stage.task(3).work_of(1, 0), &line(1.0).replace("\"a\"", "\"d\""));
        put(&run.stage(&StageKey::new("train").unwrap()).work_of(2, 0), &line(1.0));
        assert_eq!(of_stage(&fs, &stage).unwrap(), Work { useful: 1.0 + 1.0 + 2.0, superseded: 0.0 });
        assert_eq!(of_run(&fs, &run).unwrap().useful, 6.0);
        assert_eq!(of_run(&fs, &RunDir::new("/none")).unwrap(), Work::default());
    }
}
