//! `equipoise doctor`: is everything there that a run needs?

mod cluster;
mod node;
mod quota;

use crate::output::{self, Colour, Format};
use crate::{runner, steps};
use equipoise_base::{ExitCode, Result};
use equipoise_config::BUILD_ID;
use equipoise_telemetry::Host;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Check this machine, this installation and, where there is Slurm, its settings.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise doctor\n  \
    equipoise doctor --root /scratch/me --output json\n  \
    equipoise doctor --node --root /scratch/me         two ranks on compute nodes, started as those of a run\n  \
    equipoise doctor --weights models/stable-diffusion-2-1-unclip\n  \
    equipoise doctor --write-site > ~/.config/equipoise/config.toml   a first [slurm] for this cluster\n\n\
    Exits 1 if a check fails.")]
pub struct Args {
    /// Where runs are to be made.
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// Check compute nodes instead: start two ranks as a run would, in this allocation or one of a few minutes.
    #[arg(long)]
    node: bool,
    /// Settings on top of those of site and user, with --node.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "node")]
    sets: Vec<String>,
    /// Check this Hugging Face folder instead: components, parameters, types, hashes.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["root", "node"])]
    weights: Option<PathBuf>,
    /// Print a configuration for this cluster, made from what Slurm reports.
    #[arg(long, conflicts_with = "node")]
    write_site: bool,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// What a check found.
#[derive(Debug, Serialize)]
struct Finding {
    check: String,
    passed: bool,
    found: String,
}

impl Finding {
    fn new(check: impl Into<String>, found: std::result::Result<String, String>) -> Self {
        let passed = found.is_ok();
        Self { check: check.into(), passed, found: found.unwrap_or_else(|reason| reason) }
    }
}

/// Checks.
pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(dir) = &args.weights {
        return super::weights::check(dir, args.output);
    }
    if args.write_site {
        return cluster::write_site();
    }
    let findings = match args.node {
        true => node::findings(&args.root, &args.sets)?,
        false => here(&args.root),
    };
    let passed = findings.iter().all(|finding| finding.passed);
    match args.output {
        Format::Json => output::json(&findings),
        Format::Text => {
            for Finding { check, passed, found } in &findings {
                let (verdict, colour) = if *passed { ("ok  ", Colour::Good) } else { ("FAIL", Colour::Bad) };
                output::line(format!("{} {check:<20} {found}", output::coloured(verdict, colour)));
            }
        }
    }
    Ok(if passed { ExitCode::Done } else { ExitCode::CheckFailed })
}

/// What this machine has.
fn here(root: &Path) -> Vec<Finding> {
    let mut findings = vec![Finding::new("equipoise", Ok(format!("build {BUILD_ID}")))];
    findings.extend(steps::PROGRAMS.map(program));
    findings.extend(libraries());
    findings.extend(gpus());
    findings.push(Finding::new("mpirun", mpirun()));
    findings.push(Finding::new("machine", machine()));
    findings.extend(quota::findings(root));
    findings.extend(cluster::findings());
    findings
}

fn program(name: &str) -> Finding {
    let found = match steps::build_id(name) {
        Ok(id) if id == BUILD_ID => Ok(format!("build {id}")),
        Ok(id) => Err(format!("build {id}, but equipoise is of build {BUILD_ID}: build them together")),
        Err(error) => Err(error.to_string()),
    };
    Finding::new(name, found)
}

/// The native libraries that a step binary would load.
fn libraries() -> Vec<Finding> {
    let linked =
        steps::find("equipoise-train").map_err(|error| error.to_string()).and_then(|path| ldd(&path));
    let library = |prefix: &str| {
        let linked = linked.as_ref().map_err(Clone::clone)?;
        let line = linked.lines().map(str::trim).find(|line| line.starts_with(prefix));
        let place = line.and_then(|line| line.split_once("=> "));
        match (line, place) {
            (_, Some((_, "not found"))) => {
                Err(format!("{prefix}*.so is linked but not found: check LD_LIBRARY_PATH"))
            }
            (_, Some((_, place))) => Ok(place.split(" (").next().unwrap_or(place).to_string()),
            (Some(line), None) => Ok(line.to_string()),
            (None, None) => Ok("linked statically, or not used".into()),
        }
    };
    let torch = match library("libtorch_cpu") {
        Ok(place) if place.starts_with("linked") => Err("equipoise-train is not linked with libtorch".into()),
        found => found,
    };
    vec![
        Finding::new("libtorch", torch),
        Finding::new("HDF5", library("libhdf5")),
        Finding::new("MPI", library("libmpi")),
    ]
}

fn ldd(path: &Path) -> std::result::Result<String, String> {
    let output = Command::new("ldd").arg(path).output().map_err(|error| format!("ldd: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// GPUs and NCCL as a step binary finds them; a machine without is no failure, one that cannot join its GPUs is.
fn gpus() -> [Finding; 2] {
    let facts: std::result::Result<Value, String> =
        steps::ask("equipoise-train", "--facts").map_err(|error| error.to_string()).and_then(|text| {
            serde_json::from_str(&text).map_err(|error| format!("equipoise-train --facts: {error}"))
        });
    let facts = match facts {
        Ok(facts) => facts,
        Err(why) => return ["GPU", "NCCL"].map(|check| Finding::new(check, Err(why.clone()))),
    };
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_string();
    let count = facts["gpus"].as_u64().unwrap_or(0);
    let machine = &facts["machine"];
    let gpu = match count {
        0 => format!("none, runs on the CPU: {}", text(&facts["why_no_gpu"])),
        _ => format!(
            "{count} x {}; CUDA {}, cuDNN {}, TF32 {}",
            text(&machine["gpu"]),
            text(&machine["cudart"]),
            text(&machine["cudnn"]),
            text(&machine["tf32"])
        ),
    };
    let nccl = match (facts["nccl"].as_str(), count) {
        (Some(version), _) => Ok(version.to_string()),
        (None, 0) => Ok("not there; only a training on several GPUs needs it".into()),
        (None, _) => Err(text(&facts["why_no_nccl"])),
    };
    [Finding::new("GPU", Ok(gpu)), Finding::new("NCCL", nccl)]
}

fn mpirun() -> std::result::Result<String, String> {
    let path = runner::mpirun().map_err(|error| error.to_string())?;
    let flavour = equipoise_comm::mpirun::Flavour::detect(&path).map_err(|error| error.to_string())?;
    Ok(format!("{} ({flavour:?})", path.display()))
}

fn machine() -> std::result::Result<String, String> {
    let Host { name, cpu, cpus, memory, system } = Host::here();
    Ok(format!("{name}: {cpus} CPUs ({cpu}), {} memory, {system}", output::bytes(memory)))
}
