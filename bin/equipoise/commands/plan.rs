//! `equipoise plan`: stages, exact counts, space; before anything is computed.

mod dry_run;
mod simulate;

pub use dry_run::dry_run;

use super::RecipeArgs;
use crate::classes::{self, Counts, Planned};
use crate::output::{self, Format};
use crate::runner::{self, Run};
use equipoise_base::{Error, ExitCode, Result, ensure};
use equipoise_config::method::Codec;
use equipoise_config::nearest::hint;
use equipoise_config::recipe::{Dataset, Set};
use equipoise_config::{Kind, Stage};
use equipoise_rundir::vfs::Space;
use equipoise_rundir::{RealFs, Vfs};
use equipoise_workplan::parameters::{ClassifierSize, UNetSize};
use equipoise_workplan::space::Checkpoints;
use equipoise_workplan::{ClassPlan, CodecConfig};
use serde::{Deserialize as _, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Show what a recipe would do: stages, exact counts per class and set, bytes and files.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise plan my.toml\n  \
    equipoise plan my.toml --set generate.plan.n=1300 --output json\n  \
    equipoise plan my.toml --simulate 1024 --mtbf 14400   how long sets take on ranks that fail every four hours\n  \
    equipoise submit my.toml --dry-run                    hours and attempts as batch jobs\n\n\
    Exits 73 if the space or the number of files left does not suffice.")]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Run directory [default: run.root/run.name].
    #[arg(long = "run", value_name = "DIR")]
    run: Option<PathBuf>,
    #[command(flatten)]
    simulate: simulate::Simulate,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Bytes that an image takes beside its pixels: seed, checksum, criterion values, side files.
const IMAGE_OVERHEAD: u64 = 256;
/// Logs, metrics and side files of a stage.
const STAGE_BYTES: u64 = 1 << 20;
/// Their number.
const STAGE_FILES: u64 = 16;

/// What a recipe comes to.
#[derive(Debug, Serialize)]
struct Plan {
    run: PathBuf,
    ranks: u32,
    threads: u32,
    stages: Vec<StagePlan>,
    splits: Vec<SplitPlan>,
    sets: Vec<SetPlan>,
    bytes: u64,
    files: u64,
    free_bytes: u64,
    /// Null where the file system has no limit.
    free_files: Option<u64>,
}

#[derive(Debug, Serialize)]
struct StagePlan {
    name: String,
    kind: Kind,
    program: Option<&'static str>,
    ranks: usize,
    after: Vec<String>,
    identity: String,
}

#[derive(Debug, Serialize)]
struct SplitPlan {
    name: String,
    images: u64,
    codec: String,
    bytes: u64,
}

/// One set; the same for each of its seeds.
#[derive(Debug, Serialize)]
struct SetPlan {
    name: String,
    seeds: Vec<u64>,
    /// By class, or by group (`class/context`) if the plan is.
    classes: Vec<ClassRow>,
    /// Synthetic images.
    images: u64,
    shards: u64,
    codec: String,
    bytes: u64,
    files: u64,
}

#[derive(Debug, Serialize)]
struct ClassRow {
    class: String,
    #[serde(flatten)]
    plan: ClassPlan,
}

/// Plans.
pub fn run(args: &Args) -> Result<ExitCode> {
    let resolved = args.recipe.resolve()?;
    let dir = args.run.clone().unwrap_or_else(|| resolved.run_dir());
    let run = Run::new(resolved, dir)?;
    if let Some(ranks) = args.simulate.ranks() {
        return simulate::run(&run, ranks, &args.simulate, args.output);
    }
    let plan = plan(&run)?;
    match args.output {
        Format::Json => output::json(&plan),
        Format::Text => print(&plan),
    }
    let free = Space { bytes: plan.free_bytes, inodes: plan.free_files.unwrap_or(u64::MAX) };
    fits(run.dir.root(), plan.bytes, plan.files, free)?;
    Ok(ExitCode::Done)
}

/// Refuses to start what cannot end for lack of space.
///
/// # Errors
/// 73 with what is needed and what is free; what reading the data says, if they are still to be prepared.
pub fn check_space(run: &Run, needed: &[&Stage]) -> Result<()> {
    let sizes = match Sizes::read(run) {
        Ok(sizes) => sizes,
        // The data may be gone once they are prepared.
        Err(_) if needed.iter().all(|stage| stage.kind != Kind::Prepare) => return Ok(()),
        Err(error) => return Err(error),
    };
    let (mut bytes, mut files) = (0, 0);
    for stage in needed {
        let (more_bytes, more_files) = sizes.of_stage(stage);
        bytes += more_bytes;
        files += more_files;
    }
    fits(run.dir.root(), bytes, files, space(run.dir.root())?)
}

fn plan(run: &Run) -> Result<Plan> {
    let recipe = &run.resolved.recipe;
    let sizes = Sizes::read(run)?;
    let (mut bytes, mut files) = (0, 0);
    let mut stages = Vec::new();
    for stage in &run.stages {
        let (more_bytes, more_files) = sizes.of_stage(stage);
        bytes += more_bytes;
        files += more_files;
        stages.push(StagePlan {
            name: stage.name.clone(),
            kind: stage.kind,
            program: stage.kind.program(),
            ranks: runner::ranks_of(recipe, stage)?,
            after: stage.after.clone(),
            identity: stage.identity.to_string(),
        });
    }
    let free = space(run.dir.root())?;
    Ok(Plan {
        run: run.dir.root().to_owned(),
        ranks: recipe.run.ranks,
        threads: recipe.run.threads,
        stages,
        splits: sizes.splits,
        sets: sizes.sets,
        bytes,
        files,
        free_bytes: free.bytes,
        free_files: (free.inodes != u64::MAX).then_some(free.inodes),
    })
}

/// Counts and sizes of what a run writes.
struct Sizes {
    splits: Vec<SplitPlan>,
    sets: Vec<SetPlan>,
    channels: u64,
    classes: u64,
    /// Checkpoints kept.
    keep: u64,
}

impl Sizes {
    fn read(run: &Run) -> Result<Self> {
        let recipe = &run.resolved.recipe;
        let keep = u64::from(recipe.checkpoint.keep);
        let mut sizes = Self { splits: Vec::new(), sets: Vec::new(), channels: 0, classes: 0, keep };
        let Some(data) = &recipe.data else { return Ok(sizes) };
        let mut counts = BTreeMap::new();
        for (name, split) in data.splits.iter() {
            let of_split = Counts::read(recipe, data, name, split)?;
            let images = of_split.classes.iter().sum();
            let codec: CodecConfig = data.codec.as_ref().map_or(Ok(CodecConfig::Raw), Codec::parse)?;
            let bytes = images * (codec.image_bytes(samples(data)) + IMAGE_OVERHEAD);
            sizes.splits.push(SplitPlan { name: name.into(), images, codec: codec.to_string(), bytes });
            counts.insert(name, of_split);
        }
        let names = classes::names(data)?;
        (sizes.channels, sizes.classes) = (u64::from(data.channels), names.len() as u64);
        if let Some(class) = recipe.grid.as_ref().and_then(|grid| grid.class.as_ref()) {
            let known: Vec<&str> = names.iter().map(String::as_str).collect();
            let message = || format!("grid.class: there is no class '{class}'{}", hint(class, &known));
            ensure!(names.contains(class), Config, "{}", message());
        }
        for (name, set) in recipe.sets.iter() {
            let counts = counts.get(set.generate.split.as_str()).cloned().unwrap_or_default();
            sizes.sets.push(SetPlan::new(name, set, data, &counts)?);
        }
        Ok(sizes)
    }

    fn split(&self, name: &str) -> Option<&SplitPlan> {
        self.splits.iter().find(|split| split.name == name)
    }

    fn set(&self, name: &str) -> Option<&SetPlan> {
        self.sets.iter().find(|set| set.name == name)
    }

    /// Bytes and files of one stage.
    fn of_stage(&self, stage: &Stage) -> (u64, u64) {
        let text = |key: &str| stage.params[key].as_str().unwrap_or_default();
        let (bytes, files) = match stage.kind {
            Kind::Prepare => self.split(text("split")).map_or((0, 0), |split| (split.bytes, 1)),
            Kind::Generate => self.set(text("set")).map_or((0, 0), |set| (set.bytes, set.files)),
            Kind::Classifier | Kind::Arm | Kind::Diffusion => self.checkpoints(stage).unwrap_or_default(),
            _ => (0, 0),
        };
        (bytes + STAGE_BYTES, files + STAGE_FILES)
    }
}

impl Sizes {
    /// Bytes and files of a training's checkpoints; none for a network whose size is not known before it is built.
    fn checkpoints(&self, stage: &Stage) -> Option<(u64, u64)> {
        let is_generator = stage.kind == Kind::Diffusion;
        let (parameters, training) = match is_generator {
            true => {
                let network = UNetSize::deserialize(&stage.params["model"]).ok()?;
                // One row more than classes: the null label of classifier-free guidance.
                (network.count(self.channels, self.classes + 1), &stage.params["train"])
            }
            false => {
                let network = ClassifierSize::deserialize(&stage.params["arch"]).ok()?;
                (network.count(self.channels, self.classes), &stage.params)
            }
        };
        let optimizer_states = if training["optimizer"]["kind"] == "adamw" { 2 } else { 1 };
        let checkpoints =
            Checkpoints { parameters, optimizer_states, averaged: is_generator, keep: self.keep };
        Some(checkpoints.space())
    }
}

impl SetPlan {
    fn new(name: &str, set: &Set, data: &Dataset, counts: &Counts) -> Result<Self> {
        let generate = &set.generate;
        let Planned { rows, layout } = Planned::new(data, generate, counts)?;
        let images = layout.images();
        let codec: CodecConfig = generate.codec.parse()?;
        Ok(Self {
            name: name.into(),
            seeds: set.seeds.clone(),
            classes: rows.into_iter().map(|(class, plan)| ClassRow { class, plan }).collect(),
            images,
            shards: layout.len(),
            codec: codec.to_string(),
            bytes: images * (codec.image_bytes(samples(data)) + IMAGE_OVERHEAD),
            // A shard, its side file, and the folder of each class.
            files: 2 * layout.len() + layout.folders().count() as u64,
        })
    }
}

/// Samples of an image.
fn samples(data: &Dataset) -> u64 {
    u64::from(data.size[0]) * u64::from(data.size[1]) * u64::from(data.channels)
}

/// What is free where the run directory is or will be.
fn space(dir: &Path) -> Result<Space> {
    let existing = dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    RealFs.space(existing).map_err(|error| Error::io("ask for free space", existing, error))
}

fn fits(dir: &Path, bytes: u64, files: u64, free: Space) -> Result<()> {
    if bytes <= free.bytes && files <= free.inodes {
        return Ok(());
    }
    let message = format!(
        "{}: the plan needs {} and {files} files, free are {} and {}",
        dir.display(),
        output::bytes(bytes),
        output::bytes(free.bytes),
        limit(free.inodes),
    );
    Err(Error::new(ExitCode::NoSpace, message).next("choose another run.root, or a smaller plan"))
}

fn limit(inodes: u64) -> String {
    if inodes == u64::MAX { "no limit of files".into() } else { format!("{inodes} files") }
}

fn print(plan: &Plan) {
    output::line(format!("run    {}", plan.run.display()));
    output::line(format!("ranks  {} of {} thread(s)", plan.ranks, plan.threads));
    output::line("");
    let row = |stage: &StagePlan| {
        vec![
            stage.name.clone(),
            stage.program.unwrap_or("-").into(),
            stage.ranks.to_string(),
            stage.after.len().to_string(),
        ]
    };
    let rows: Vec<_> = plan.stages.iter().map(row).collect();
    output::table(&["stage", "program", "ranks", "after"], &rows, &[2, 3]);
    if !plan.splits.is_empty() {
        output::line("");
        let row = |split: &SplitPlan| {
            let size = output::bytes(split.bytes);
            vec![split.name.clone(), split.images.to_string(), split.codec.clone(), size]
        };
        let rows: Vec<_> = plan.splits.iter().map(row).collect();
        output::table(&["split", "images", "stored as", "size"], &rows, &[1, 3]);
    }
    for set in &plan.sets {
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
    output::line("");
    let free_files = limit(plan.free_files.unwrap_or(u64::MAX));
    let (need, free) = (output::bytes(plan.bytes), output::bytes(plan.free_bytes));
    output::line(format!("needs  {need} and {} files, checkpoints included", plan.files));
    output::line(format!("free   {free}, {free_files}"));
}
