//! `equipoise calibrate`: how fast this machine is at each kind of work that a recipe needs.

mod batches;
mod rehearse;

use super::RecipeArgs;
use super::run::decided;
use crate::cost::calibration::{BatchSize, Calibration, Entry, VERSION};
use crate::cost::{default_calibration, work};
use crate::output::{self, Format};
use crate::runner::{Run, shell_word};
use equipoise_base::clock::{Clock as _, SystemClock};
use equipoise_base::{ExitCode, Identity, Result, ensure};
use equipoise_config::{BUILD_ID, Kind, Stage};
use equipoise_report::pace::{Pace, Rehearsal};
use equipoise_telemetry::human_duration;
use rehearse::{Rehearsed, Stage as Rehearsals};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Measure how fast this machine is at each kind of work of a recipe, and which batch size generates fastest.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise calibrate my.toml                        then: equipoise plan my.toml\n  \
    equipoise calibrate my.toml --seconds 20           longer, for a steadier number\n  \
    equipoise calibrate my.toml --batches 8,16,32,64   batch sizes to try; --batches none tries none\n  \
    equipoise calibrate my.toml --out h200.json        then: equipoise plan my.toml --calibration h200.json\n\n\
    A few real units of each kind of work (training steps, batches of images, images prepared) run with the recipe's own\n\
    batch sizes, number formats, threads and ranks; their results are thrown away. What is not there yet, such as a\n\
    classifier to be trained, has a stand-in of the same shape. The recipe is not changed: a batch size is part of the\n\
    identity of every image. Run it on the kind of node that will do the work. Ctrl-C stops it with exit code 75;\n\
    what was measured so far is kept.")]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Run directory [default: run.root/run.name].
    #[arg(long = "run", value_name = "DIR")]
    run: Option<PathBuf>,
    /// File to write [default: RUN/calibration.json].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Seconds of steady work to measure of each kind.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,
    /// Batch sizes of generation to try, or `none`.
    #[arg(long, value_name = "LIST", default_value = "4,8,16,32,64")]
    batches: batches::Ladder,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Calibrates.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        args.seconds > 0.0 && args.seconds < 3600.0,
        Usage,
        "--seconds: want more than 0, less than 3600"
    );
    let run = decided(&args.recipe, args.run.as_deref())?;
    let out = args.out.clone().unwrap_or_else(|| default_calibration(&run.dir));
    let kinds = kinds(&run);
    ensure!(!kinds.is_empty(), Config, "the recipe has no stage whose work could be measured");
    let mut stage = Rehearsals::new(&run, &out, args.seconds)?;
    let mut found = Calibration {
        version: VERSION,
        tool: BUILD_ID.into(),
        wall: SystemClock::default().wall(),
        work: Vec::new(),
        batches: Vec::new(),
    };
    let stopped = measure(args, &mut stage, &kinds, &mut found);
    // What was measured before an error is as good as it was.
    if !found.work.is_empty() {
        found.clone().write(&out)?;
    }
    let stopped = stopped?;
    finish(args, &out, &found, stopped);
    Ok(if stopped { ExitCode::Requeue } else { ExitCode::Done })
}

/// The first stage of each kind of work.
fn kinds(run: &Run) -> Vec<(Identity, &Stage)> {
    let mut kinds: Vec<(Identity, &Stage)> = Vec::new();
    for stage in &run.stages {
        if let Some(work) = work::key(run, stage).filter(|work| kinds.iter().all(|(known, _)| known != work))
        {
            kinds.push((work, stage));
        }
    }
    kinds
}

/// Measures everything; whether it was stopped on request.
fn measure(
    args: &Args,
    rehearsals: &mut Rehearsals<'_>,
    kinds: &[(Identity, &Stage)],
    found: &mut Calibration,
) -> Result<bool> {
    for (number, (work, stage)) in kinds.iter().enumerate() {
        announce(args.output, number + 1, kinds.len(), &stage.name);
        let rehearsal = match rehearsals.run(stage, &[])? {
            Rehearsed::Done(rehearsal) => rehearsal,
            Rehearsed::Nothing => continue,
            Rehearsed::Stopped => return Ok(true),
        };
        show(args.output, stage, &rehearsal);
        found.work.push(Entry { work: work.clone(), stage: stage.name.clone(), rehearsal });
    }
    let generated = kinds.iter().filter(|(_, stage)| stage.kind == Kind::Generate);
    for (work, stage) in generated {
        let Some(own) =
            found.work.iter().find(|entry| entry.work == *work).map(|entry| entry.rehearsal.clone())
        else {
            continue;
        };
        let mut line = |tried: &BatchSize| batches::show(args.output, tried);
        if batches::climb(&args.batches, rehearsals, stage, &own, &mut found.batches, &mut line)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn announce(format: Format, number: usize, of: usize, stage: &str) {
    if format == Format::Text {
        output::line(format!("{number}/{of}  {stage}"));
    }
}

/// What was found out about one kind of work.
fn show(format: Format, stage: &Stage, rehearsal: &Rehearsal) {
    let Pace { unit, seconds, low, high, overhead, steady, .. } = &rehearsal.pace;
    if format == Format::Json {
        output::json(&json!({ "stage": stage.name, "rehearsal": rehearsal }));
        return;
    }
    let images =
        images_per_second(stage, rehearsal).map(|rate| format!(", {rate:.1} images/s")).unwrap_or_default();
    let one = unit
        .strip_suffix("es")
        .filter(|word| word.ends_with("ch"))
        .or(unit.strip_suffix('s'))
        .unwrap_or(unit);
    let spread = match steady {
        0 => String::new(),
        _ => format!(" ({} to {} in {steady})", short(*low), short(*high)),
    };
    output::line(format!(
        "      {} per {one}{spread}{images}; start and end {}; {} a rank{}",
        short(*seconds),
        human_duration(*overhead),
        output::bytes(rehearsal.peak_memory),
        rehearsal
            .gpu_memory
            .map(|bytes| format!(", {} of its GPU", output::bytes(bytes)))
            .unwrap_or_default(),
    ));
}

/// `12.3 ms`, `0.40 ms`, `2.1 s`.
fn short(seconds: f64) -> String {
    match seconds {
        ..1e-3 => format!("{:.1} us", seconds * 1e6),
        ..1.0 => format!("{:.1} ms", seconds * 1e3),
        _ => human_duration(seconds),
    }
}

/// Images of all ranks.
fn images_per_second(stage: &Stage, rehearsal: &Rehearsal) -> Option<f64> {
    let per_unit = match stage.kind {
        Kind::Generate => stage.params["batch"].as_u64()? * rehearsal.ranks as u64,
        Kind::Classifier | Kind::Arm => stage.params["global_batch"].as_u64()?,
        Kind::Diffusion => stage.params["train"]["global_batch"].as_u64()?,
        Kind::Features | Kind::Evaluate | Kind::Metrics => {
            equipoise_workplan::effort::FEATURE_BATCH * rehearsal.ranks as u64
        }
        Kind::Grid | Kind::Dropout => stage.params["images"].as_u64()? * rehearsal.ranks as u64,
        Kind::Embed => rehearsal.ranks as u64,
        Kind::Prepare => 1,
        _ => return None,
    };
    Some(per_unit as f64 / rehearsal.pace.seconds)
}

fn finish(args: &Args, out: &Path, found: &Calibration, stopped: bool) {
    let best = batches::best(&found.batches);
    if args.output == Format::Json {
        let best: Vec<_> =
            best.iter().map(|tried| json!({ "stage": tried.stage, "batch": tried.batch })).collect();
        output::json(
            &json!({ "file": out, "stopped": stopped, "measured": found.work.len(), "best_batches": best }),
        );
        return;
    }
    for tried in best {
        output::line(batches::advice(tried, &found.batches));
    }
    let state = if stopped { "stopped; measured so far" } else { "calibrated" };
    output::line(format!("{state}: {} kinds of work, in {}", found.work.len(), out.display()));
    if !stopped {
        let file = match args.out {
            Some(_) => format!(" --calibration {}", shell_word(out)),
            None => String::new(),
        };
        output::line(format!("next: equipoise plan {}{file}", args.recipe.as_typed(args.run.as_deref())));
    }
}
