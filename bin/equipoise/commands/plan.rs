//! `equipoise plan`: stages, exact counts, space; before anything is computed.

use super::RecipeArgs;
use crate::classes;
use crate::output::{self, Format};
use crate::runner::{self, Run};
use equipoise_base::{Error, ExitCode, Result};
use equipoise_config::recipe::{Dataset, Set};
use equipoise_config::{Kind, Stage};
use equipoise_rundir::vfs::Space;
use equipoise_rundir::{RealFs, Vfs};
use equipoise_workplan::{ClassPlan, Layout, LayoutConfig, PlanConfig};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Show what a recipe would do: stages, exact counts per class and set, bytes and files.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise plan my.toml\n  \
    equipoise plan my.toml --set generate.plan.n=1300 --output json\n\n\
    Exits 73 if the space or the number of files left does not suffice. Checkpoints are not counted: only the step\n\
    that writes them knows the size of its network.")]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Run directory [default: run.root/run.name].
    #[arg(long = "run", value_name = "DIR")]
    run: Option<PathBuf>,
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
    bytes: u64,
}

/// One set; the same for each of its seeds.
#[derive(Debug, Serialize)]
struct SetPlan {
    name: String,
    seeds: Vec<u64>,
    classes: Vec<ClassRow>,
    /// Synthetic images.
    images: u64,
    shards: u64,
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
}

impl Sizes {
    fn read(run: &Run) -> Result<Self> {
        let recipe = &run.resolved.recipe;
        let mut sizes = Self { splits: Vec::new(), sets: Vec::new() };
        let Some(data) = &recipe.data else { return Ok(sizes) };
        let mut counts = BTreeMap::new();
        for (name, split) in data.splits.iter() {
            let by_class = classes::split_counts(recipe, data, name, split)?;
            let images = by_class.iter().sum();
            let bytes = images * (pixels(data) + IMAGE_OVERHEAD);
            sizes.splits.push(SplitPlan { name: name.into(), images, bytes });
            counts.insert(name, by_class);
        }
        let names = classes::names(data)?;
        for (name, set) in recipe.sets.iter() {
            let counts = counts.get(set.generate.split.as_str()).map(Vec::as_slice).unwrap_or_default();
            sizes.sets.push(SetPlan::new(name, set, data, &names, counts)?);
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
            _ => (0, 0),
        };
        (bytes + STAGE_BYTES, files + STAGE_FILES)
    }
}

impl SetPlan {
    fn new(name: &str, set: &Set, data: &Dataset, names: &[String], counts: &[u64]) -> Result<Self> {
        let generate = &set.generate;
        let plan = generate.plan.parse::<PlanConfig>()?.plan(counts);
        let config = LayoutConfig { batch: generate.batch, batches_per_shard: generate.batches_per_shard };
        let layout = Layout::new(config, names, &plan.synthetic())?;
        let images = layout.images();
        Ok(Self {
            name: name.into(),
            seeds: set.seeds.clone(),
            classes: names
                .iter()
                .cloned()
                .zip(plan.classes)
                .map(|(class, plan)| ClassRow { class, plan })
                .collect(),
            images,
            shards: layout.len(),
            bytes: images * (pixels(data) + IMAGE_OVERHEAD),
            // A shard, its side file, and the folder of each class.
            files: 2 * layout.len() + names.len() as u64,
        })
    }
}

fn pixels(data: &Dataset) -> u64 {
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
            vec![split.name.clone(), split.images.to_string(), output::bytes(split.bytes)]
        };
        output::table(
            &["split", "images", "size"],
            &plan.splits.iter().map(row).collect::<Vec<_>>(),
            &[1, 2],
        );
    }
    for set in &plan.sets {
        output::line("");
        let seeds: Vec<String> = set.seeds.iter().map(u64::to_string).collect();
        let (name, size) = (&set.name, output::bytes(set.bytes));
        output::line(format!(
            "set {name}, seeds {}: {} images in {} shards, {size} each",
            seeds.join(", "),
            set.images,
            set.shards
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
    output::line(format!("needs  {need}, {} files, and checkpoints", plan.files));
    output::line(format!("free   {free}, {free_files}"));
}

/// What submitting would take.
///
/// # Errors
/// As those of [`run`].
pub fn dry_run(run: &Run, output: Format) -> Result<ExitCode> {
    let plan = plan(run)?;
    match output {
        Format::Json => output::json(&plan),
        Format::Text => print(&plan),
    }
    Ok(ExitCode::Done)
}
