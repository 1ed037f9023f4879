//! `equipoise weights`: the hashes of a Hugging Face folder; and the look at one that `doctor --weights` takes.

use crate::output::{self, Colour, Format};
use crate::steps;
use clap::Subcommand;
use equipoise_base::{Error, ExitCode, Result};
use equipoise_pretrained::folder::INDEX;
use equipoise_pretrained::lock::Record;
use equipoise_pretrained::{Component, Folder, Lock};
use equipoise_rundir::{RealFs, commit_bytes};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Record what is in a folder of weights, or make one with random weights.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise weights lock models/stable-diffusion-2-1-unclip\n  \
    equipoise weights make-tiny models/tiny-unclip\n  \
    equipoise weights make-full --dtype fp16 /scratch/full-unclip\n  \
    equipoise doctor --weights models/stable-diffusion-2-1-unclip")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write sizes and SHA-256 of all files to weights.lock.json; from then on they are checked whenever it is loaded.
    Lock {
        /// Folder of a pipeline, or of one model.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Write it beside the folder, as DIR.weights.lock.json.
        #[arg(long)]
        beside: bool,
    },
    /// Make a small folder with random weights and the layout of stable-diffusion-2-1-unclip, for dry runs.
    MakeTiny {
        /// Folder to make; it must be empty, or not be there.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Seed of the weights.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Make the same with networks of the published sizes, to measure memory and speed before the weights are there.
    MakeFull {
        /// Folder to make; it must be empty, or not be there. Takes 7.7 GB, or half of it in a short format.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Seed of the weights.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Number format of the files.
        #[arg(long, default_value = "fp32", value_parser = ["fp32", "fp16", "bf16"])]
        dtype: String,
    },
}

/// Does it.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Lock { dir, beside } => lock(dir, *beside),
        What::MakeTiny { dir, seed } => {
            let line: Vec<OsString> = vec![dir.into(), format!("--seed={seed}").into()];
            steps::become_program("equipoise-weights", &line)
        }
        What::MakeFull { dir, seed, dtype } => {
            let options = [format!("--seed={seed}"), format!("--dtype={dtype}"), "--full".into()];
            let line: Vec<OsString> =
                std::iter::once(dir.into()).chain(options.map(OsString::from)).collect();
            steps::become_program("equipoise-weights", &line)
        }
    }
}

fn lock(dir: &Path, beside: bool) -> Result<ExitCode> {
    let lock = match Opened::new(dir)? {
        Opened::Pipeline(folder) => Lock::of(&folder)?,
        Opened::Model(component) => Lock::of_component(&component)?,
    };
    let path = if beside { Lock::beside(dir) } else { lock.path().to_owned() };
    commit_bytes(&RealFs, &path, &lock.to_json()?, None)?;
    output::line(format!("{}: {} files, identity {}", path.display(), lock.files().len(), lock.identity()));
    Ok(ExitCode::Done)
}

/// A folder of either kind.
enum Opened {
    Pipeline(Folder),
    Model(Component),
}

impl Opened {
    fn new(dir: &Path) -> Result<Self> {
        if dir.join(INDEX).is_file() {
            return Ok(Opened::Pipeline(Folder::open(dir)?));
        }
        let component = Component::open(dir)?;
        if component.config_path().is_err() && !component.has_weights()? {
            let message = format!("{}: neither {INDEX} nor a model is in it", dir.display());
            return Err(Error::data(message));
        }
        Ok(Opened::Model(component))
    }

    fn name(&self) -> String {
        match self {
            Opened::Pipeline(folder) => folder.pipeline().to_string(),
            Opened::Model(component) => component.class().unwrap_or_default(),
        }
    }

    fn lock(&self) -> Option<&Lock> {
        match self {
            Opened::Pipeline(folder) => folder.lock(),
            Opened::Model(component) => component.lock(),
        }
    }
}

/// What is known of a component.
#[derive(Debug, Default, Serialize)]
struct Finding {
    component: String,
    class: String,
    passed: bool,
    /// Number of values of its weights; 0 without weights.
    parameters: u64,
    /// Values by type.
    dtypes: BTreeMap<String, u64>,
    bytes: u64,
    /// SHA-256 by file.
    files: BTreeMap<String, String>,
    problem: Option<String>,
}

/// Looks at every component of a folder; exits 1 if one is missing, damaged or not what was locked.
pub fn check(dir: &Path, format: Format) -> Result<ExitCode> {
    let opened = Opened::new(dir)?;
    let findings: Vec<Finding> = match &opened {
        Opened::Pipeline(folder) => folder
            .components()
            .map(|(name, component)| {
                let class = folder.classes().find(|(known, _)| *known == name).map_or("", |(_, class)| class);
                finding(name, class, component)
            })
            .collect(),
        Opened::Model(component) => vec![finding(component.name(), &opened.name(), Ok(component.clone()))],
    };
    let passed = findings.iter().all(|finding| finding.passed);
    match format {
        Format::Json => output::json(&serde_json::json!({
            "folder": dir, "class": opened.name(), "locked": opened.lock().is_some(), "components": findings,
        })),
        Format::Text => print(dir, &opened, &findings),
    }
    Ok(if passed { ExitCode::Done } else { ExitCode::CheckFailed })
}

fn finding(name: &str, class: &str, component: Result<Component>) -> Finding {
    let mut finding = Finding { component: name.into(), class: class.into(), ..Finding::default() };
    match component.and_then(|component| look(&component, &mut finding)) {
        Ok(()) => finding.passed = true,
        Err(error) => finding.problem = Some(error.message().to_string()),
    }
    finding
}

fn look(component: &Component, finding: &mut Finding) -> Result<()> {
    if component.has_weights()? {
        let weights = component.weights()?;
        finding.parameters = weights.count();
        finding.dtypes = weights.count_by_dtype();
        finding.bytes = weights.byte_size();
    }
    for path in component.deciding_files()? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(lock) = component.lock() {
            lock.check(&path)?;
        }
        let locked = component.lock().and_then(|lock| lock.record(&path)).cloned();
        finding.files.insert(name, locked.map_or_else(|| Record::of(&path), Ok)?.sha256);
    }
    Ok(())
}

fn print(dir: &Path, opened: &Opened, findings: &[Finding]) {
    let state = match opened.lock() {
        Some(lock) => format!("as locked in {}", lock.path().display()),
        None => format!("not locked (next: equipoise weights lock {})", dir.display()),
    };
    output::line(format!("{}: {}, {state}", dir.display(), opened.name()));
    for finding in findings {
        let (verdict, colour) = if finding.passed { ("ok  ", Colour::Good) } else { ("FAIL", Colour::Bad) };
        let verdict = output::coloured(verdict, colour);
        let head = format!("{verdict} {:<24} {:<34}", finding.component, finding.class);
        let weights = finding.dtypes.iter().map(|(dtype, count)| format!("{} {dtype}", grouped(*count)));
        let weights = weights.collect::<Vec<_>>().join(", ");
        let size =
            if finding.bytes > 0 { format!(" ({})", output::bytes(finding.bytes)) } else { String::new() };
        let found = finding.problem.clone().unwrap_or(format!("{weights}{size}"));
        output::line(format!("{head} {found}").trim_end());
        for (file, sha256) in &finding.files {
            output::line(format!("       {sha256}  {file}"));
        }
    }
}

/// 870173124 as 870,173,124.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands() {
        assert_eq!([7, 999, 1000, 870_173_124].map(super::grouped), ["7", "999", "1,000", "870,173,124"]);
    }
}
