//! `equipoise shards regenerate`: images from their identity, to audit a set or to complete it.

use crate::environment;
use crate::output::{self, Format};
use crate::sets::{INDEX, Set, sets};
use crate::verify::{Kind, check};
use equipoise_base::{Error, ExitCode, Result};
use equipoise_rundir::stage::Outcome;
use equipoise_rundir::{RealFs, RunDir, StageKey};
use equipoise_stages::regenerate::{self, Compared, Pick};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Make images again from their identity and compare them with what is stored, or complete a set.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise shards regenerate runs/quickstart --sample 20\n  \
    equipoise shards regenerate runs/quickstart --set feedback.k0 Coat/17 T-shirt/top/3 9/0\n  \
    equipoise shards regenerate runs/quickstart --failed\n\n\
    An image is a function of its identity: the batch that it belongs to is computed again, with the run's \
    configuration, weights, threads and instruction set. Exits 1 if an image differs, 78 naming the fact if this \
    machine cannot give the same bits. Without --failed nothing is written.")]
pub struct Args {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Only this set; may be repeated.
    #[arg(long = "set", value_name = "NAME.kSEED")]
    sets: Vec<String>,
    /// Images to compare; a class is given by name, folder or number.
    #[arg(value_name = "CLASS/INDEX", value_parser = parse_image, conflicts_with_all = ["sample", "failed"])]
    images: Vec<(String, u64)>,
    /// Compare this many images of each set, always the same ones.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    sample: u64,
    /// Make failed images again, and shards that are missing or damaged.
    #[arg(long, conflicts_with = "sample")]
    failed: bool,
    /// Levels of 255 that a sample may differ by where the file says that its bits cannot be reproduced.
    #[arg(long, value_name = "LEVELS", default_value_t = 8)]
    tolerance: u8,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

fn parse_image(text: &str) -> Result<(String, u64), String> {
    // Names of classes may hold slashes, indices do not.
    let (class, index) = text.rsplit_once('/').ok_or("expected CLASS/INDEX, such as Coat/17")?;
    let index = index.parse().map_err(|_| format!("'{index}' is not an index"))?;
    Ok((class.to_string(), index))
}

/// Audits or completes the sets.
pub fn run(args: &Args) -> Result<ExitCode> {
    let sets = sets(&args.run, &args.sets)?;
    let config = RunDir::new(&args.run).config();
    if !config.is_file() {
        return Err(Error::new(
            ExitCode::Usage,
            format!("{}: no such file: not a run directory", config.display()),
        ));
    }
    environment::pin(&args.run)?;
    if args.failed { complete(args, &sets) } else { audit(args, &sets) }
}

#[derive(Serialize)]
struct Line {
    set: String,
    equal: bool,
    #[serde(flatten)]
    compared: Compared,
}

#[derive(Serialize)]
struct Audited {
    images: Vec<Line>,
    equal: u64,
    different: u64,
}

fn audit(args: &Args, sets: &[Set]) -> Result<ExitCode> {
    let pick = match args.images.as_slice() {
        [] => Pick::Sample(args.sample),
        images => Pick::Images(images.to_vec()),
    };
    let mut audited = Audited { images: vec![], equal: 0, different: 0 };
    for set in sets {
        let mut on_image = |compared: &Compared| {
            let equal = compared.difference.is_none();
            *(if equal { &mut audited.equal } else { &mut audited.different }) += 1;
            match args.output {
                Format::Text => output::line(describe(&set.name, compared)),
                Format::Json => {
                    audited.images.push(Line { set: set.name.clone(), equal, compared: compared.clone() });
                }
            }
        };
        regenerate::audit(&args.run, &set.stage(), &pick, args.tolerance, &mut on_image)?;
    }
    match args.output {
        Format::Json => output::json(&audited),
        Format::Text => output::line(format!("{} equal, {} different", audited.equal, audited.different)),
    }
    Ok(if audited.different == 0 { ExitCode::Done } else { ExitCode::CheckFailed })
}

fn describe(set: &str, Compared { class, index, difference }: &Compared) -> String {
    match difference {
        None => format!("equal      {set} {class}/{index}"),
        Some(difference) => format!("different  {set} {class}/{index}: {difference}"),
    }
}

/// Completes every set that needs it. Images that fail again in one set do not keep the others waiting.
fn complete(args: &Args, sets: &[Set]) -> Result<ExitCode> {
    let mut done = Vec::new();
    let mut worst = ExitCode::Done;
    for set in sets {
        let begun = needs_completion(&args.run, set)?;
        let code = match begun.then(|| regenerate::complete(&args.run, &set.stage())) {
            None => ExitCode::Done,
            Some(Ok(code)) => code,
            Some(Err(error)) if error.code() == ExitCode::CheckFailed => {
                output::error(&error);
                ExitCode::CheckFailed
            }
            Some(Err(error)) => return Err(error.context(&set.name)),
        };
        done.push(Completed { set: set.name.clone(), state: state(begun, code) });
        if code == ExitCode::Requeue {
            worst = code;
            break;
        }
        worst = worst.max(code);
    }
    match args.output {
        Format::Json => output::json(&done),
        Format::Text => done.iter().for_each(|set| output::line(format!("{} {}", set.set, set.state))),
    }
    Ok(worst)
}

#[derive(Serialize)]
struct Completed {
    set: String,
    state: &'static str,
}

fn state(begun: bool, code: ExitCode) -> &'static str {
    match (begun, code) {
        (false, _) => "was complete",
        (true, ExitCode::Done) => "completed",
        (true, ExitCode::Requeue) => "stopped",
        (true, _) => "still lacks images",
    }
}

/// Whether something is wrong with a set that can be made again.
fn needs_completion(run: &Path, set: &Set) -> Result<bool> {
    let broken = check(set, false, None).problems.iter().any(|problem| problem.kind != Kind::Extra);
    if broken && !set.folder.join(INDEX).exists() && !has_ended(run, set)? {
        let message = format!("{}: its stage has not ended yet", set.folder.display());
        return Err(Error::data(message).next(format!("equipoise resume {}", run.display())));
    }
    Ok(broken)
}

fn has_ended(run: &Path, set: &Set) -> Result<bool> {
    let Some(key) = StageKey::parse(&set.stage()) else { return Ok(false) };
    let outcome = Outcome::read(&RealFs, &RunDir::new(run).stage(&key))?;
    Ok(outcome.is_some_and(|outcome| matches!(outcome.name, ExitCode::Done | ExitCode::CheckFailed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_may_hold_slashes() {
        assert_eq!(parse_image("T-shirt/top/3"), Ok(("T-shirt/top".into(), 3)));
        assert_eq!(parse_image("9/0"), Ok(("9".into(), 0)));
        for text in ["", "Coat", "Coat/", "Coat/x", "Coat/-1"] {
            assert!(parse_image(text).is_err(), "{text}");
        }
    }
}
