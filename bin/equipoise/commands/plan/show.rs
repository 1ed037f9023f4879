//! A plan as text.

use super::actual::deviation;
use super::{ClassRow, Plan, SetPlan, SplitPlan, StagePlan, limit};
use crate::output;
use equipoise_telemetry::human_duration;
use equipoise_workplan::ClassPlan;

/// Prints; `recipe` is what the user typed for it.
pub fn print(plan: &Plan, recipe: &str) {
    output::line(format!("run    {}", plan.run.display()));
    output::line(format!("ranks  {} of {} thread(s)", plan.ranks, plan.threads));
    output::line("");
    stages(plan);
    splits(&plan.splits);
    plan.sets.iter().for_each(set);
    output::line("");
    time(plan, recipe);
    room(plan);
}

fn stages(plan: &Plan) {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let done = plan.stages.iter().any(|stage| stage.time.took.is_some());
    let row = |stage: &StagePlan| {
        let mut cells = vec![
            stage.name.clone(),
            stage.program.unwrap_or("-").into(),
            stage.ranks.to_string(),
            stage.after.len().to_string(),
            output::bytes(stage.room.bytes),
            stage.room.files.to_string(),
            or_dash(stage.time.seconds.map(human_duration)),
        ];
        if done {
            let difference = stage.time.measured_by.as_ref().and(stage.time.seconds.zip(stage.time.took));
            let difference = difference.and_then(|(expected, took)| deviation(expected, took));
            cells.push(or_dash(stage.time.took.map(human_duration)));
            cells.push(or_dash(difference.map(|percent| format!("{percent:+.0} %"))));
        }
        cells.push(stage.time.measured_by.clone().unwrap_or_default());
        cells
    };
    let rows: Vec<_> = plan.stages.iter().map(row).collect();
    let header: &[&str] = match done {
        true => {
            &["stage", "program", "ranks", "after", "size", "files", "takes", "took", "off by", "measured by"]
        }
        false => &["stage", "program", "ranks", "after", "size", "files", "takes", "measured by"],
    };
    output::table(header, &rows, &[2, 3, 4, 5, 6, 7, 8][..if done { 7 } else { 5 }]);
}

fn splits(splits: &[SplitPlan]) {
    if splits.is_empty() {
        return;
    }
    output::line("");
    let row = |split: &SplitPlan| {
        vec![split.name.clone(), split.images.to_string(), split.codec.clone(), output::bytes(split.bytes)]
    };
    let rows: Vec<_> = splits.iter().map(row).collect();
    output::table(&["split", "images", "stored as", "size"], &rows, &[1, 3]);
}

fn set(set: &SetPlan) {
    output::line("");
    let seeds: Vec<String> = set.seeds.iter().map(u64::to_string).collect();
    let (name, size) = (&set.name, output::bytes(set.bytes));
    output::line(format!(
        "set {name}, seeds {}: {} images in {} shards as {}, {size} each",
        seeds.join(", "),
        set.images,
        set.shards,
        set.codec
    ));
    let row = |row: &ClassRow| {
        let ClassPlan { real, extra_real, synthetic } = row.plan;
        vec![row.class.clone(), real.to_string(), extra_real.to_string(), synthetic.to_string()]
    };
    let rows: Vec<_> = set.classes.iter().map(row).collect();
    output::table(&["class", "real", "drawn again", "synthetic"], &rows, &[1, 2, 3]);
}

fn time(plan: &Plan, recipe: &str) {
    let total = &plan.time;
    let left = plan.stages.iter().filter(|stage| stage.time.took.is_none()).count();
    if left > 0 {
        let gpu = total.gpu_hours.map(|hours| format!(", {hours:.2} GPU-hours")).unwrap_or_default();
        let known = format!("{}, {:.2} rank-hours{gpu}", human_duration(total.seconds), total.rank_hours);
        let measured =
            plan.stages.iter().any(|stage| stage.time.took.is_none() && stage.time.measured_by.is_some());
        match total.unknown {
            0 => output::line(format!("takes  {known}")),
            _ if !measured => output::line("takes  unknown: nothing like it was measured"),
            unknown => output::line(format!("takes  {known}, and {unknown} stages of unknown speed")),
        }
        if total.unknown > 0 {
            output::line(format!("       to know: equipoise calibrate {recipe}"));
        }
    }
    if total.took > 0.0 {
        output::line(format!("took   {} so far", human_duration(total.took)));
    }
    let (expected, took) = total.compared;
    if let Some(percent) = deviation(expected, took) {
        let (expected, took) = (human_duration(expected), human_duration(took));
        output::line(format!("       of which {took} where {expected} were expected: {percent:+.1} %"));
    }
    if let Some(machine) = &total.calibrated_on {
        output::line(format!("       calibrated on {machine}"));
    }
}

fn room(plan: &Plan) {
    let (need, peak) = (output::bytes(plan.room.bytes), output::bytes(plan.room.peak_bytes));
    output::line(format!(
        "needs  {need} and {} files and folders; {peak} and {} at most meanwhile",
        plan.room.files, plan.room.peak_files
    ));
    if plan.on_disk.files > 0 {
        let there = plan.on_disk;
        let off = |expected: u64, actual: u64| {
            deviation(expected as f64, actual as f64)
                .map(|percent| format!("{percent:+.1} %"))
                .unwrap_or_default()
        };
        let complete = plan.stages.iter().all(|stage| stage.time.took.is_some());
        let compared = match complete {
            true => {
                format!(": {} and {}", off(plan.room.bytes, there.bytes), off(plan.room.files, there.files))
            }
            false => String::new(),
        };
        output::line(format!(
            "there  {} and {} files and folders{compared}",
            output::bytes(there.bytes),
            there.files
        ));
    }
    let free_files = limit(plan.free_files.unwrap_or(u64::MAX));
    output::line(format!("free   {}, {free_files}", output::bytes(plan.free_bytes)));
}
