//! `equipoise verify`: numerics against the reference packages, done by `equipoise-verify`.

use crate::output::Format;
use crate::steps;
use equipoise_base::{ExitCode, Result};
use std::ffi::OsString;
use std::path::PathBuf;

/// Check the numerics of this build against cases computed by the reference packages.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise verify tests/oracle\n  \
    equipoise verify tests/oracle --kind resnet --kind ddim\n  \
    equipoise verify tests/oracle --case '*f64*' --output json\n  \
    equipoise verify tests/oracle --device cuda")]
pub struct Args {
    /// A folder of kinds, one kind, or one case.
    dir: PathBuf,
    /// Only these kinds.
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
    /// Only cases whose name matches; `*` stands for anything.
    #[arg(long = "case", value_name = "GLOB")]
    case: Option<String>,
    /// Where to compute: cpu, cuda, or auto for the GPU if there is one.
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda", "auto"])]
    device: String,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Becomes the step binary.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut line: Vec<OsString> = vec![args.dir.clone().into()];
    let named = |name: &str, value: &String| [OsString::from(name), OsString::from(value)];
    line.extend(args.kinds.iter().flat_map(|kind| named("--kind", kind)));
    line.extend(args.case.iter().flat_map(|case| named("--case", case)));
    line.extend(["--device", &args.device].map(OsString::from));
    if args.output == Format::Json {
        line.extend(["--output", "json"].map(OsString::from));
    }
    steps::become_program("equipoise-verify", &line)
}
