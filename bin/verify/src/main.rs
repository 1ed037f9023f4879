//! `equipoise verify DIR`: runs oracle cases and compares (docs/design/oracle.md).

mod case;
mod kinds;

use case::{Case, Worst};
use clap::Parser;
use equipoise_base::{Error, ExitCode, Result};
use equipoise_config::BUILD_ID;
use equipoise_nn::runtime::{self, DeviceChoice, RuntimeConfig};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Check the numerics of this build against cases computed by the reference packages.
#[derive(Debug, Parser)]
#[command(
    name = "equipoise verify",
    after_help = "Examples:\n  \
    equipoise verify tests/oracle\n  \
    equipoise verify tests/oracle --kind resnet --kind ddim\n  \
    equipoise verify tests/oracle --case '*f64*' --output json\n  \
    equipoise verify tests/oracle --device cuda"
)]
struct Cli {
    /// A folder of kinds, one kind, or one case.
    #[arg(default_value = "tests/oracle")]
    dir: PathBuf,
    /// Print the build that front end and steps must share.
    #[arg(long, hide = true)]
    build_id: bool,
    /// Only these kinds.
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
    /// Only cases whose name matches; `*` stands for anything.
    #[arg(long = "case", value_name = "GLOB")]
    cases: Vec<String>,
    /// Where to compute: cpu, cuda, or auto for the GPU if there is one.
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda", "auto"])]
    device: String,
    /// How to print.
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        std::process::exit(if error.use_stderr() { ExitCode::Usage.status() } else { 0 });
    });
    if cli.build_id {
        println!("{BUILD_ID}");
        return ExitCode::Done.into();
    }
    match init(&cli).and_then(|()| run(&cli)) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: {error}");
            error.code().into()
        }
    }
}

/// As a step binary computes: deterministic operators, no TF32, one thread.
fn init(cli: &Cli) -> Result<()> {
    let device = match cli.device.as_str() {
        "cuda" => DeviceChoice::Cuda,
        "auto" => DeviceChoice::Auto,
        _ => DeviceChoice::Cpu,
    };
    runtime::init(&RuntimeConfig { device, ..RuntimeConfig::default() })
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let mut dirs = Vec::new();
    find_cases(&cli.dir, 0, &mut dirs)?;
    dirs.retain(|dir| selected(cli, dir));
    dirs.sort();
    if dirs.is_empty() {
        return Err(Error::data(format!("{}: no case selected", cli.dir.display())));
    }
    let (mut passed, mut failed) = (0, 0);
    for dir in &dirs {
        let start = Instant::now();
        let label = label(dir);
        let outcome = check(dir);
        let ok = matches!(&outcome, Ok(worst) if worst.ratio <= 1.0);
        if ok {
            passed += 1
        } else {
            failed += 1
        }
        print(cli, &label, ok, &outcome, start.elapsed().as_secs_f64());
    }
    match cli.output.as_str() {
        "json" => {
            let device = format!("{:?}", runtime::device());
            println!("{}", serde_json::json!({ "passed": passed, "failed": failed, "device": device }));
        }
        _ => println!("{passed} passed, {failed} failed"),
    }
    Ok(if failed == 0 { ExitCode::Done } else { ExitCode::CheckFailed })
}

/// The kind and case folder names, as people name a case.
fn label(dir: &Path) -> String {
    let parts: Vec<_> = dir.iter().rev().take(2).map(|part| part.to_string_lossy().into_owned()).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}

fn check(dir: &Path) -> Result<Worst> {
    let case = Case::read(dir)?;
    let known = kinds::KINDS.iter().find(|(kind, _)| *kind == case.kind);
    let (_, check) = known.ok_or_else(|| case.broken(&format!("kind '{}' is unknown", case.kind)))?;
    case.compare(&check(&case)?)
}

fn print(cli: &Cli, label: &str, ok: bool, outcome: &Result<Worst>, seconds: f64) {
    if cli.output == "json" {
        let (tensor, error, ratio, message) = match outcome {
            Ok(worst) => (Some(&worst.tensor), Some(worst.error), Some(worst.ratio), None),
            Err(error) => (None, None, None, Some(error.to_string())),
        };
        let line = serde_json::json!({
            "case": label, "passed": ok, "tensor": tensor, "error": error, "error_over_tolerance": ratio,
            "message": message, "seconds": seconds,
        });
        println!("{line}");
        return;
    }
    let verdict = if ok { "ok  " } else { "FAIL" };
    match outcome {
        Ok(worst) => println!(
            "{verdict} {label:<44} error {:9.2e} = {:8.2e} of the tolerance, in {}",
            worst.error, worst.ratio, worst.tensor
        ),
        Err(error) => println!("{verdict} {label:<44} {error}"),
    }
}

fn find_cases(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if dir.join("case.json").is_file() {
        found.push(dir.to_owned());
        return Ok(());
    }
    if depth == 2 {
        return Ok(());
    }
    let entries = std::fs::read_dir(dir).map_err(|error| Error::io("list", dir, error))?;
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        find_cases(&entry.path(), depth + 1, found)?;
    }
    Ok(())
}

fn selected(cli: &Cli, dir: &Path) -> bool {
    let part = |n: usize| {
        dir.iter().rev().nth(n).map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
    };
    (cli.kinds.is_empty() || cli.kinds.contains(&part(1)))
        && (cli.cases.is_empty() || cli.cases.iter().any(|glob| matches(glob.as_bytes(), part(0).as_bytes())))
}

/// Shell-style `*`; everything else stands for itself.
fn matches(glob: &[u8], text: &[u8]) -> bool {
    match glob.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skip| matches(rest, &text[skip..])),
        Some((c, rest)) => text.split_first().is_some_and(|(t, tail)| t == c && matches(rest, tail)),
    }
}
