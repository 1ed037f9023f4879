//! The page itself: fills `templates/report.html`.

use crate::gather::{Gathered, StageFacts};
use crate::results::{Dropout, SetMetrics, SetResult, ToyArm};
use crate::table::{ArmSummary, Cell, Metric, metrics};
use crate::{Context, Cost, Interval, figures};
use askama::Template;
use base64::Engine as _;
use equipoise_base::{ExitCode, Result, ResultExt};
use std::collections::BTreeSet;

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    context: &'a Context,
    verdict: Vec<String>,
    headings: Vec<&'static str>,
    rows: Vec<Row>,
    dots: Vec<(&'static str, String)>,
    worst_groups: Vec<String>,
    bars: Option<String>,
    sets: Option<&'a SetMetrics>,
    set_rows: Vec<SetRow>,
    gains: Vec<String>,
    pictures: Vec<Picture>,
    grid: Option<String>,
    grid_note: String,
    dropout: Option<&'a Dropout>,
    toy: Option<String>,
    toy_rows: Vec<ToyRow>,
    searches: Vec<SearchRow>,
    curves: Option<String>,
    stages: Vec<StageRow>,
    total: String,
    expected: Option<String>,
    missing: Vec<&'static str>,
}

struct Row {
    label: String,
    runs: usize,
    cells: Vec<(String, String)>,
}

struct SetRow {
    name: String,
    cells: Vec<String>,
}

struct Picture {
    title: String,
    data: String,
}

struct ToyRow {
    name: String,
    cells: Vec<String>,
}

/// What random search has found for an arm.
struct SearchRow {
    arm: String,
    cells: Vec<String>,
}

struct StageRow {
    name: String,
    outcome: String,
    attempts: u64,
    seconds: String,
    ranks: String,
    memory: String,
    /// Expected seconds, and how far off they were.
    expected: String,
}

/// The page as one string.
pub fn render(gathered: &Gathered, context: &Context, summary: &[ArmSummary]) -> Result<String> {
    let classes =
        gathered.evaluation.as_ref().map(|evaluation| (&evaluation.classes, &evaluation.train_counts));
    let total: f64 =
        gathered.stages.iter().filter_map(|stage| Some(stage.provenance.as_ref()?.seconds)).sum();
    let metrics = metrics(gathered);
    let page = Page {
        context,
        verdict: verdict(&metrics, summary, context),
        headings: metrics.iter().map(|(_, heading, _)| *heading).collect(),
        rows: summary.iter().map(row).collect(),
        dots: dots(&metrics, summary, context)?,
        worst_groups: worst_groups(gathered, summary),
        bars: match classes {
            Some((classes, counts)) if !summary.is_empty() => {
                Some(figures::class_bars(summary, classes, counts)?)
            }
            _ => None,
        },
        sets: gathered.sets.as_ref(),
        set_rows: gathered.sets.iter().flat_map(|sets| &sets.sets).map(set_row).collect(),
        gains: gathered.sets.iter().flat_map(|sets| &sets.sets).filter_map(gain).collect(),
        pictures: pictures(gathered),
        grid: gathered.grid.as_ref().map(figures::grid).transpose()?,
        grid_note: grid_note(gathered),
        dropout: gathered.dropout.as_ref(),
        toy: gathered.toy.as_ref().map(figures::toy).transpose()?,
        toy_rows: gathered.toy.iter().flat_map(|toy| &toy.arms).map(toy_row).collect(),
        searches: searches(gathered, context),
        curves: curves(gathered)?,
        stages: gathered.stages.iter().map(|stage| stage_row(stage, context)).collect(),
        total: human(total.max(0.)),
        expected: expected(context),
        missing: missing(gathered, context),
    };
    page.render().or_exit(ExitCode::Bug, "report.html")
}

fn percent(value: f64) -> String {
    format!("{:.1}", value * 100.)
}

/// `84.1 ± 0.3`: mean and standard deviation in percent.
fn spread(value: &Interval) -> String {
    match value.n {
        1 => percent(value.mean),
        _ => format!("{} ± {:.1}", percent(value.mean), value.std * 100.),
    }
}

/// `+1.2 [0.4, 2.0]`: a difference in points with its 95 % interval.
fn difference(value: &Interval) -> String {
    match value.half_width.is_finite() {
        true => format!("{:+.1} [{}, {}]", value.mean * 100., percent(value.low()), percent(value.high())),
        false => format!("{:+.1}", value.mean * 100.),
    }
}

fn row(arm: &ArmSummary) -> Row {
    let cell = |cell: &Option<Cell>| match cell {
        None => ("–".to_string(), String::new()),
        Some(cell) => (spread(&cell.value), cell.difference.as_ref().map(difference).unwrap_or_default()),
    };
    let runs = arm.cells.iter().flatten().map(|cell| cell.value.n).max().unwrap_or(0);
    Row { label: arm.label.clone(), runs, cells: arm.cells.iter().map(cell).collect() }
}

/// Says which arm won on all classes and on the rarest, and whether the lead is clear, whoever it is. A ceiling is no
/// competitor; the last line says how far away it is.
fn verdict(metrics: &[Metric], summary: &[ArmSummary], context: &Context) -> Vec<String> {
    let mut lines = Vec::new();
    let places =
        [("all", "all classes"), ("rare3", "the three rarest classes"), ("worst_group", "the worst group")];
    for (key, place) in places {
        let Some(column) = metrics.iter().position(|(name, _, _)| *name == key) else { continue };
        let in_race = summary.iter().filter(|arm| !arm.is_ceiling);
        let mut ranked: Vec<(&ArmSummary, &Cell)> =
            in_race.filter_map(|arm| Some((arm, arm.cells[column].as_ref()?))).collect();
        ranked.sort_by(|a, b| b.1.value.mean.total_cmp(&a.1.value.mean));
        let [first, second, ..] = ranked.as_slice() else { continue };
        let lead = first.1.value.minus(&second.1.value);
        let clear = if lead.is_clear() { "a clear lead" } else { "within the spread of the runs" };
        let mut line = format!(
            "On {place}, \u{201c}{}\u{201d} comes first with {} %; \u{201c}{}\u{201d} follows with {} % ({} points, {clear}).",
            first.0.label,
            spread(&first.1.value),
            second.0.label,
            spread(&second.1.value),
            difference(&lead),
        );
        if let Some(gain) = &first.1.difference {
            let baseline = context.arms.iter().find(|arm| arm.name == context.baseline);
            let baseline = baseline.map_or(context.baseline.as_str(), |arm| &arm.label);
            line += &format!(" Against \u{201c}{baseline}\u{201d}: {} points.", difference(gain));
        }
        for ceiling in summary.iter().filter(|arm| arm.is_ceiling) {
            if let Some(cell) = &ceiling.cells[column] {
                let (label, value) = (&ceiling.label, spread(&cell.value));
                line += &format!(" Out of the race, \u{201c}{label}\u{201d} reaches {value} %.");
            }
        }
        lines.push(line);
    }
    lines
}

fn dots(
    metrics: &[Metric],
    summary: &[ArmSummary],
    context: &Context,
) -> Result<Vec<(&'static str, String)>> {
    let mut figures = Vec::new();
    for (index, (key, _, _)) in metrics.iter().enumerate() {
        let title = match *key {
            "all" => "All classes",
            "rare3" => "Three rarest classes",
            "worst_group" => "Worst group",
            _ => continue,
        };
        if summary.iter().any(|arm| arm.cells[index].is_some()) {
            figures.push((title, figures::dots(summary, index, &context.baseline)?));
        }
    }
    Ok(figures)
}

/// The groups that each arm knows least, on the mean over its runs.
fn worst_groups(gathered: &Gathered, summary: &[ArmSummary]) -> Vec<String> {
    const SHOWN: usize = 3;
    let Some(evaluation) = &gathered.evaluation else { return Vec::new() };
    let line = |arm: &ArmSummary| {
        let accuracies = arm.per_group.iter().enumerate();
        let mut ranked: Vec<(usize, f64)> =
            accuracies.filter_map(|(group, accuracy)| Some((group, (*accuracy)?))).collect();
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
        let groups: Vec<String> = ranked
            .iter()
            .take(SHOWN)
            .map(|&(group, accuracy)| {
                let name = evaluation.groups.get(group).map_or("?", String::as_str);
                let real = evaluation.train_group_counts.get(group).copied().unwrap_or(0);
                format!("{name} {} % ({real} real training images)", percent(accuracy))
            })
            .collect();
        (!groups.is_empty()).then(|| format!("{}: {}.", arm.label, groups.join(", ")))
    };
    summary.iter().filter_map(line).collect()
}

fn set_row(set: &SetResult) -> SetRow {
    let stored = [set.codec.as_str(), set.resize_filter.as_str()];
    let stored: String = stored
        .into_iter()
        .filter(|text| !["", "raw"].contains(text))
        .map(|text| format!(", {text}"))
        .collect();
    SetRow {
        name: format!("{}, set {}{stored}", set.set, set.seed),
        cells: vec![
            set.images.to_string(),
            format!("{} / {}", set.retried, set.failed),
            format!("{} %", percent(set.agreement)),
            format!("{:.2}", set.fid),
            format!("{:.3}", set.density),
            format!("{:.3}", set.coverage),
            format!("{:.3}", set.div_cos),
            format!("{:.3}", set.div_std),
            format!("{:.3}", set.div_svd),
        ],
    }
}

/// Whether guidance raised its criterion, in words.
fn gain(set: &SetResult) -> Option<String> {
    let gain = set.criterion_gain.as_ref()?;
    let verdict = if gain.low > 0. { "raised" } else { "did not raise" };
    Some(format!(
        "{}, set {}: guidance {verdict} the {} of the final images over {} pairs of the same noise by {:+.3}, 95 % interval \
         [{:.3}, {:.3}].",
        set.set, set.seed, gain.criterion, gain.pairs, gain.mean, gain.low, gain.high
    ))
}

fn pictures(gathered: &Gathered) -> Vec<Picture> {
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let picture = |(title, bytes): &(String, Vec<u8>)| Picture {
        title: title.replace(['_', '-'], " "),
        data: encode(bytes),
    };
    gathered.pictures.iter().map(picture).collect()
}

fn grid_note(gathered: &Gathered) -> String {
    gathered.grid.as_ref().map_or_else(String::new, |grid| {
        format!(
            "Each cell: share of {} images that the judge recognises, and below it the mean {} of the guide on the final \
             images. The same noise in every cell.",
            grid.images, grid.criterion
        )
    })
}

fn toy_row(arm: &ToyArm) -> ToyRow {
    let cell = |values: &[f64]| {
        Interval::of(values).map_or_else(|| "–".into(), |value| format!("{} %", spread(&value)))
    };
    ToyRow {
        name: arm.name.clone(),
        cells: vec![cell(&arm.minority_share), cell(&arm.validity), cell(&arm.minority_accuracy)],
    }
}

/// The name of the classifier or arm that a stage trains.
fn trained(stage: &StageFacts) -> Option<&str> {
    stage.name.strip_prefix("train.")?.split('.').next()
}

/// One row for each arm that searched: its trainings take the same settings.
fn searches(gathered: &Gathered, context: &Context) -> Vec<SearchRow> {
    let mut rows: Vec<SearchRow> = Vec::new();
    for stage in &gathered.stages {
        let (Some(name), Some(search)) = (trained(stage), &stage.search) else { continue };
        let Some(taken) = search.tried.get(search.taken) else { continue };
        let arm = context.arms.iter().find(|arm| arm.name == name).map_or(name, |arm| &arm.label);
        if rows.iter().any(|row| row.arm == arm) {
            continue;
        }
        let mut all: Vec<f64> = search.tried.iter().map(|tried| tried.accuracy).collect();
        all.sort_by(|a, b| b.total_cmp(a));
        let all: Vec<String> = all.into_iter().map(percent).collect();
        let cells = vec![
            taken.lr.to_string(),
            taken.global_batch.to_string(),
            percent(taken.accuracy),
            all.join(", "),
        ];
        rows.push(SearchRow { arm: arm.into(), cells });
    }
    rows
}

/// Training loss of the first run of every arm and of the guide.
fn curves(gathered: &Gathered) -> Result<Option<String>> {
    let searches = gathered.stages.iter().filter_map(|stage| stage.search.as_ref());
    let trials: BTreeSet<&str> =
        searches.flat_map(|search| &search.tried).map(|tried| tried.stage.as_str()).collect();
    let mut curves: Vec<figures::Curve> = Vec::new();
    for stage in gathered.stages.iter().filter(|stage| !trials.contains(stage.name.as_str())) {
        let Some(label) = trained(stage).map(str::to_string) else { continue };
        let points: Vec<(f64, f64)> = stage
            .metrics
            .iter()
            .filter_map(|row| Some((row["step"].as_f64()?, row["loss"].as_f64()?)))
            .collect();
        if !points.is_empty() && curves.iter().all(|curve| curve.label != label) {
            curves.push(figures::Curve { label, points });
        }
    }
    if curves.is_empty() { Ok(None) } else { figures::curves(&curves, "step", "training loss").map(Some) }
}

fn stage_row(stage: &StageFacts, context: &Context) -> StageRow {
    let provenance = stage.provenance.as_ref();
    StageRow {
        name: stage.name.clone(),
        outcome: stage.outcome.clone(),
        attempts: stage.attempts,
        seconds: provenance.map_or_else(|| "–".into(), |p| human(p.seconds)),
        ranks: provenance.map_or_else(|| "–".into(), |p| format!("{} × {}", p.ranks, p.threads)),
        memory: provenance
            .map_or_else(|| "–".into(), |p| format!("{:.0} MiB", p.peak_memory as f64 / 1048576.)),
        expected: context.costs.get(&stage.name).map_or_else(|| "–".into(), compared),
    }
}

/// `12.0 s, took 13.2 s (+10 %)`.
fn compared(cost: &Cost) -> String {
    match cost.took {
        Some(took) => format!(
            "{}, took {} ({:+.0} %)",
            human(cost.expected),
            human(took),
            100. * (took / cost.expected.max(1e-9) - 1.)
        ),
        None => human(cost.expected),
    }
}

/// What all stages with an expectation were expected to take and took; none without a calibration.
fn expected(context: &Context) -> Option<String> {
    let done: Vec<&Cost> = context.costs.values().filter(|cost| cost.took.is_some()).collect();
    let total = Cost {
        expected: done.iter().map(|cost| cost.expected).sum(),
        took: Some(done.iter().filter_map(|cost| cost.took).sum()),
    };
    (!done.is_empty()).then(|| compared(&total))
}

fn human(seconds: f64) -> String {
    if seconds < 60. { format!("{seconds:.1} s") } else { format!("{:.1} min", seconds / 60.) }
}

/// What the recipe has and the run has not yet.
fn missing(gathered: &Gathered, context: &Context) -> Vec<&'static str> {
    let parts = [
        ("accuracies", !context.arms.is_empty() && gathered.evaluation.is_none()),
        ("synthetic sets", context.has_sets && gathered.sets.is_none()),
    ];
    parts.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name).collect()
}
