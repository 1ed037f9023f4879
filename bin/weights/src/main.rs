//! `equipoise-weights`: makes folders of random weights; `equipoise weights make-tiny` and `make-full` become it.

use clap::{Parser, ValueEnum};
use equipoise_base::{Error, ExitCode, Result, ensure};
use equipoise_config::BUILD_ID;
use equipoise_diffusion::random_folder::{self, Content, Size, Weights};
use equipoise_rundir::{RealFs, Vfs as _, commit_bytes, create_dirs};
use std::path::{Path, PathBuf};
use tch::Kind;

/// Make a Hugging Face folder of an unCLIP with random weights.
#[derive(Debug, Parser)]
#[command(name = "equipoise-weights", bin_name = "equipoise weights", version = BUILD_ID)]
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
    /// Networks of the published sizes instead of tiny ones.
    #[arg(long)]
    full: bool,
    /// Number format of the weight files.
    #[arg(long, value_enum, default_value_t = Dtype::Fp32)]
    dtype: Dtype,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    Fp32,
    Fp16,
    Bf16,
}

impl Dtype {
    fn kind(self) -> Kind {
        match self {
            Dtype::Fp32 => Kind::Float,
            Dtype::Fp16 => Kind::Half,
            Dtype::Bf16 => Kind::BFloat16,
        }
    }
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
    match make(dir, &cli) {
        Ok(()) => ExitCode::Done.into(),
        Err(error) => {
            eprintln!("error: {error}");
            error.code().into()
        }
    }
}

fn make(dir: &Path, cli: &Cli) -> Result<()> {
    let mut entries = std::fs::read_dir(dir).into_iter().flatten();
    ensure!(entries.next().is_none(), Usage, "{}: there is something in it already", dir.display());
    let size = if cli.full { Size::Full } else { Size::Tiny };
    for (name, content) in random_folder::files(size, cli.seed, cli.dtype.kind())? {
        let path = dir.join(name);
        let parent = path.parent().ok_or_else(|| Error::new(ExitCode::Bug, "a file without a folder"))?;
        create_dirs(&RealFs, parent)?;
        match content {
            Content::Text(bytes) => commit_bytes(&RealFs, &path, &bytes, None)?,
            Content::Weights(weights) => store(&weights, &path)?,
        }
    }
    println!("{}", dir.display());
    Ok(())
}

/// Too large to be committed as bytes; the writer renames the file when it is complete.
fn store(weights: &Weights, path: &Path) -> Result<()> {
    weights.write(path)?;
    // It comes from a temporary file, which nobody else may read.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(path, mode).map_err(|error| Error::io("make readable", path, error))?;
    let sync = |path: &Path| RealFs.append(path)?.sync_data();
    sync(path).map_err(|error| Error::io("sync", path, error))
}
