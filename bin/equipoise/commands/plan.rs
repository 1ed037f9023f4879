//! `equipoise plan`: stages, exact counts, space; before anything is computed.

mod actual;
mod dry_run;
mod room;
mod show;
mod simulate;
mod time;

pub use dry_run::{Speeds, dry_run};

use super::RecipeArgs;
use super::run::decided;
use crate::classes::{self, Counts, Planned};
use crate::cost::Estimator;
use crate::output::{self, Format};
use crate::runner::{self, Run};
use actual::OnDisk;
use equipoise_base::{Error, ExitCode, Result, ensure};
use equipoise_config::method::Codec;
use equipoise_config::nearest::hint;
use equipoise_config::recipe::{Dataset, Set};
use equipoise_config::{Kind, Stage};
use equipoise_report::Cost;
use equipoise_rundir::vfs::Space;
use equipoise_rundir::{RealFs, Vfs};
use equipoise_workplan::{ClassPlan, CodecConfig, Layout};
use room::Room;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use time::{StageTime, Times, Total};

/// Show what a recipe would do and take: stages, exact counts per class and set, hours, bytes and files.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    equipoise plan my.toml\n  \
    equipoise calibrate my.toml && equipoise plan my.toml   with hours\n  \
    equipoise plan my.toml --calibration h200.json          hours on the machine that was calibrated\n  \
    equipoise plan runs/quickstart                          of a run that has ended: expected and taken\n  \
    equipoise plan my.toml --set generate.plan.n=1300 --output json\n  \
    equipoise plan my.toml --simulate 1024 --mtbf 14400     how long sets take on ranks that fail every four hours\n  \
    equipoise submit my.toml --dry-run                      hours and attempts as batch jobs\n\n\
    Exits 73 if the space or the number of files left does not suffice.")]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Run directory [default: run.root/run.name].
    #[arg(long = "run", value_name = "DIR")]
    run: Option<PathBuf>,
    /// What `equipoise calibrate` has measured [default: RUN/calibration.json, if it is there].
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Another run whose finished stages have measured speeds too.
    #[arg(long, value_name = "RUN")]
    measured: Option<PathBuf>,
    #[command(flatten)]
    simulate: simulate::Simulate,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Bytes of a shard in the list of a set's shards.
const INDEX_ENTRY: u64 = 190;

/// What a recipe comes to.
#[derive(Debug, Serialize)]
struct Plan {
    run: PathBuf,
    ranks: u32,
    threads: u32,
    stages: Vec<StagePlan>,
    splits: Vec<SplitPlan>,
    sets: Vec<SetPlan>,
    time: Total,
    #[serde(flatten)]
    room: Room,
    on_disk: OnDisk,
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
    time: StageTime,
    #[serde(flatten)]
    room: Room,
}

#[derive(Debug, Serialize)]
struct SplitPlan {
    name: String,
    images: u64,
    codec: String,
    bytes: u64,
    /// Images of each class and group.
    #[serde(skip)]
    counts: Counts,
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
    #[serde(skip)]
    layout: Layout,
}

#[derive(Debug, Serialize)]
struct ClassRow {
    class: String,
    #[serde(flatten)]
    plan: ClassPlan,
}

/// Plans.
pub fn run(args: &Args) -> Result<ExitCode> {
    let run = decided(&args.recipe, args.run.as_deref())?;
    if let Some(ranks) = args.simulate.ranks() {
        return simulate::run(&run, ranks, &args.simulate, args.output);
    }
    let estimator = Estimator::new(&run, args.measured.as_deref(), args.calibration.as_deref())?;
    let plan = plan(&run, &estimator)?;
    match args.output {
        Format::Json => output::json(&plan),
        Format::Text => show::print(&plan, &args.recipe.as_typed(args.run.as_deref())),
    }
    plan.require_room()?;
    Ok(ExitCode::Done)
}

impl Plan {
    /// # Errors
    /// 73 if what is not there yet does not fit on the disk.
    fn require_room(&self) -> Result<()> {
        let free = Space { bytes: self.free_bytes, inodes: self.free_files.unwrap_or(u64::MAX) };
        let bytes = self.room.peak_bytes.saturating_sub(self.on_disk.bytes);
        let files = self.room.peak_files.saturating_sub(self.on_disk.files);
        fits(&self.run, bytes, files, free)
    }
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
    let recipe = &run.resolved.recipe;
    let mut room = room::of_run();
    for stage in needed {
        room += sizes.room(recipe, stage, runner::ranks_of(recipe, stage)?);
    }
    fits(run.dir.root(), room.peak_bytes, room.peak_files, space(run.dir.root())?)
}

fn plan(run: &Run, estimator: &Estimator) -> Result<Plan> {
    let recipe = &run.resolved.recipe;
    let sizes = Sizes::read(run)?;
    let times = Times::new(run, &sizes, estimator)?;
    let mut room = room::of_run();
    let mut stages = Vec::new();
    for stage in &run.stages {
        let ranks = runner::ranks_of(recipe, stage)?;
        let own = sizes.room(recipe, stage, ranks);
        room += own;
        stages.push(StagePlan {
            name: stage.name.clone(),
            kind: stage.kind,
            program: stage.kind.program(),
            ranks,
            after: stage.after.clone(),
            identity: stage.identity.to_string(),
            time: times.of(stage, ranks)?,
            room: own,
        });
    }
    let free = space(run.dir.root())?;
    Ok(Plan {
        run: run.dir.root().to_owned(),
        ranks: recipe.run.ranks,
        threads: recipe.run.threads,
        time: Total::of(stages.iter().map(|stage| (&stage.time, stage.ranks)), recipe, estimator),
        stages,
        splits: sizes.splits,
        sets: sizes.sets,
        room,
        on_disk: actual::on_disk(&run.dir)?,
        free_bytes: free.bytes,
        free_files: (free.inodes != u64::MAX).then_some(free.inodes),
    })
}

/// What stages were expected to take, from the calibration in the run directory, and took; empty without one.
///
/// # Errors
/// Those of reading the data, the calibration or the records of stages.
pub fn costs(run: &Run) -> Result<BTreeMap<String, Cost>> {
    let estimator = Estimator::new(run, None, None)?;
    let mut costs = BTreeMap::new();
    if estimator.calibration.is_none() {
        return Ok(costs);
    }
    let sizes = Sizes::read(run)?;
    let times = Times::new(run, &sizes, &estimator)?;
    for stage in &run.stages {
        let time = times.of(stage, runner::ranks_of(&run.resolved.recipe, stage)?)?;
        if let (Some(expected), Some(_)) = (time.seconds, time.measured_by) {
            costs.insert(stage.name.clone(), Cost { expected, took: time.took });
        }
    }
    Ok(costs)
}

/// Counts and sizes of what a run writes.
struct Sizes {
    splits: Vec<SplitPlan>,
    sets: Vec<SetPlan>,
    channels: u64,
    classes: u64,
}

impl Sizes {
    fn read(run: &Run) -> Result<Self> {
        let recipe = &run.resolved.recipe;
        let mut sizes = Self { splits: Vec::new(), sets: Vec::new(), channels: 0, classes: 0 };
        let Some(data) = &recipe.data else { return Ok(sizes) };
        for (name, split) in data.splits.iter() {
            let counts = Counts::read(recipe, data, name, split)?;
            let images = counts.classes.iter().sum();
            let codec: CodecConfig = data.codec.as_ref().map_or(Ok(CodecConfig::Raw), Codec::parse)?;
            let bytes = codec.file_bytes(images, samples(data), 0);
            let codec = codec.to_string();
            sizes.splits.push(SplitPlan { name: name.into(), images, codec, bytes, counts });
        }
        let names = classes::names(data)?;
        (sizes.channels, sizes.classes) = (u64::from(data.channels), names.len() as u64);
        let swept = [
            ("grid", recipe.grid.as_ref().and_then(|grid| grid.classes.as_ref())),
            ("dropout", recipe.dropout.as_ref().and_then(|dropout| dropout.classes.as_ref())),
        ];
        for (table, class) in swept
            .into_iter()
            .flat_map(|(table, wanted)| wanted.into_iter().flatten().map(move |class| (table, class)))
        {
            let known: Vec<&str> = names.iter().map(String::as_str).collect();
            let message = || format!("{table}.classes: there is no class '{class}'{}", hint(class, &known));
            ensure!(names.contains(class), Config, "{}", message());
        }
        for (name, set) in recipe.sets.iter() {
            let counts =
                sizes.split(&set.generate.split).map(|split| split.counts.clone()).unwrap_or_default();
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
}

impl SetPlan {
    /// Synthetic images of each of so many classes.
    fn synthetic(&self, classes: u64) -> Vec<u64> {
        let mut images = vec![0; classes as usize];
        for shard in self.layout.shards() {
            images[shard.class.0 as usize] += shard.images.end - shard.images.start;
        }
        images
    }

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
            bytes: layout.len() * (codec.file_bytes(0, samples(data), 0) + INDEX_ENTRY)
                + codec.file_bytes(images, samples(data), guided_steps(set))
                - codec.file_bytes(0, samples(data), 0),
            // The shards, their folders, the folder of the set and its index.
            files: layout.len() + layout.folders().count() as u64 + 2,
            layout,
        })
    }
}

/// Steps of sampling at which the criterion is stored, about.
fn guided_steps(set: &Set) -> u64 {
    let Some(feedback) = &set.generate.feedback else { return 0 };
    let (sampler, feedback) = (&set.generate.sampler.0, &feedback.0);
    let steps = sampler["steps"].as_u64().or(sampler["respacing"].as_u64()).unwrap_or(0) as f64;
    let part = feedback["max_t"].as_f64().unwrap_or(1.0).min(1.0)
        / feedback["every"].as_f64().unwrap_or(1.0).max(1.0);
    (steps * part).round() as u64
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
