//! `equipoise-weights`: makes folders of random weights; `equipoise weights make-tiny` becomes it.

use clap::Parser;
use equipoise_base::{Error, ExitCode, Result, ensure};
use equipoise_config::BUILD_ID;
use equipoise_diffusion::tiny;
use equipoise_rundir::{RealFs, commit_bytes, create_dirs};
use std::path::PathBuf;

/// Make a Hugging Face folder of a tiny unCLIP with random weights.
#[derive(Debug, Parser)]
#[command(name = "equipoise-weights", bin_name = "equipoise weights make-tiny", version = BUILD_ID)]
struct Cli {
    /// Print the build that front end and steps must share.
    #[arg(long, hide = true, exclusive = true)]
    build_id: bool,
    /// Folder to make; it must be empty, or not be there.
    #[arg(required_unless_present = "build_id")]
    dir: Option<PathBuf>,
    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        std::process::exit(if error.use_stderr() { ExitCode::Usage.status() } else { 0 });
    });
    let Some(dir) = &cli.dir else {
        println!("{BUILD_ID}");
        return ExitCode::Done.into();
    };
    tch::set_num_threads(1);
    match make(dir, cli.seed) {
        Ok(()) => ExitCode::Done.into(),
        Err(error) => {
            eprintln!("error: {error}");
            error.code().into()
        }
    }
}

fn make(dir: &std::path::Path, seed: u64) -> Result<()> {
    let mut entries = std::fs::read_dir(dir).into_iter().flatten();
    ensure!(entries.next().is_none(), Usage, "{}: there is something in it already", dir.display());
    for (name, bytes) in tiny::files(seed)? {
        let path = dir.join(name);
        let parent = path.parent().ok_or_else(|| Error::new(ExitCode::Bug, "a file without a folder"))?;
        create_dirs(&RealFs, parent)?;
        commit_bytes(&RealFs, &path, &bytes, None)?;
    }
    println!("{}", dir.display());
    Ok(())
}
