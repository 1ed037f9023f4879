//! What every step binary does around its loop: libtorch, ranks, lease, log, signals, outcome.
//!
//! Order matters. Signals first, so that an early stop is not lost; libtorch before any tensor; MPI before the lease, so
//! that one rank takes it for all; the panic hook once somebody can be told.

mod ending;
mod files;
mod gradients;
mod machine;
#[cfg(feature = "nccl")]
mod nccl;
mod pace;
mod rehearsal;
mod stopping;
mod timeline;
mod work;

use crate::claim_folder::ClaimFolder;
use crate::job::{self, Job};
use crate::training::Ended;
use crate::world::{self, World};
use equipoise_base::clock::{Clock, SystemClock};
use equipoise_base::{Error, ExitCode, Identity, Result, ResultExt, bail, ensure, trace};
use equipoise_comm::claim_files::ClaimFiles;
use equipoise_comm::{Comm, StopFlag};
use equipoise_config::recipe::{self, Recipe};
use equipoise_config::{BUILD_ID, load_resolved, stage as find_stage};
use equipoise_nn::runtime::{self, DeviceChoice, RuntimeConfig};
use equipoise_rundir::identity::IdentityRecord;
use equipoise_rundir::lease::{Fence, LeaseRequest};
use equipoise_rundir::product::Products;
use equipoise_rundir::stage::{State, Status};
use equipoise_rundir::{
    Checkpoint, CheckpointWriter, Checkpoints, Deadline, Journal, LeaseGuard, Process, RealFs, RunDir, Stage,
    StageDir, StageKey, Vfs,
};
use equipoise_telemetry::Progress;
pub use files::Committer;
use files::{Log, prepared};
use pace::Pacer;
pub(crate) use rehearsal::rehearse_stage;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// `status.json` is replaced at most this often.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// A commit is assumed to take so long until one was measured.
const FIRST_COMMIT: Duration = Duration::from_secs(5);

/// A stage in progress on this rank.
pub struct Step {
    /// What is to be done.
    pub stage: equipoise_config::Stage,
    recipe: Recipe,
    run: RunDir,
    dir: StageDir,
    /// Where this process writes about itself: the stage's folder, or the task's in an array job.
    records: StageDir,
    job: Job,
    world: World,
    gradients: gradients::Choice,
    vfs: Arc<dyn Vfs>,
    clock: Arc<dyn Clock>,
    guard: LeaseGuard,
    attempt: u64,
    identity: Identity,
    stop: StopFlag,
    deadline: Mutex<Deadline>,
    host: String,
    started: Instant,
    /// Units that this rank has finished in this attempt.
    made: AtomicU64,
    /// How long they took.
    pacer: Pacer,
    work: Mutex<work::WorkLog>,
    /// Whether the ranks record spans, and where they go if not beside the logs.
    traced: bool,
    trace_file: Option<PathBuf>,
    /// On the root: the open stage and its metrics file.
    root: Option<Mutex<Root>>,
}

/// What only rank 0 holds.
struct Root {
    stage: Stage,
    metrics: Journal,
    last_status: Option<Instant>,
    /// What this attempt has committed for other stages.
    products: Products,
}

/// What rank 0 tells the others about the opened stage.
#[derive(Serialize, Deserialize)]
struct Opened {
    attempt: u64,
    fences: Vec<Fence>,
    /// Seconds until the job ends.
    left: Option<f64>,
}

/// Runs one stage from lease to outcome: the one that `stage=NAME` in `sets` names.
///
/// # Errors
/// Those of the stage, which are in its `outcome.json` once it was opened.
pub(crate) fn run_stage(
    config: &Path,
    run: &Path,
    sets: &[String],
    trace_file: Option<PathBuf>,
    body: fn(&Step) -> Result<Ended>,
) -> Result<ExitCode> {
    let stop = StopFlag::default();
    stop.on_signals()?;
    equipoise_comm::parent::die_with_parent()?;
    let resolved = load_resolved(config, sets)?;
    let Some(name) = resolved.recipe.stage.clone() else {
        bail!(Usage, "--set stage=NAME is needed: `equipoise plan` lists the stages");
    };
    let stage = find_stage(&resolved, &name)?;
    let world = world::init()?;
    world.require_size()?;
    init_runtime(&resolved.recipe, &stage, &world)?;
    let traced = trace_file.is_some() || resolved.recipe.run.trace;
    if traced {
        trace::start();
    }
    let step = Step { traced, trace_file, ..Step::open(stage, resolved.recipe, run, world, stop)? };
    step.guard_against_panics();
    let watchdog = step.world.watch(step.lost_peer_reporter())?;
    let stopped = |error: Error| match error.code() {
        // All ranks have agreed on it, see `Step::agree_to_go_on`.
        ExitCode::Requeue => Ok(Ended::Stopped),
        _ => Err(error),
    };
    let ended = body(&step).or_else(stopped).and_then(|ended| step.end(ended));
    drop(watchdog);
    match ended {
        Ok(code) => step.leave().map(|()| code),
        Err(error) => Err(step.fail(error)),
    }
}

fn init_runtime(recipe: &Recipe, stage: &equipoise_config::Stage, world: &World) -> Result<()> {
    use equipoise_config::Kind;
    runtime::init(&RuntimeConfig {
        // Where nothing is for a GPU to do, none is woken, and another machine may go on.
        device: match stage.kind {
            Kind::Prepare | Kind::Toy => DeviceChoice::Cpu,
            _ => device(recipe.run.device),
        },
        threads: recipe.run.threads as usize,
        local_rank: world.local_rank(),
        ..RuntimeConfig::default()
    })
}

fn device(name: recipe::Device) -> DeviceChoice {
    match name {
        recipe::Device::Auto => DeviceChoice::Auto,
        recipe::Device::Cpu => DeviceChoice::Cpu,
        recipe::Device::Cuda => DeviceChoice::Cuda,
    }
}

impl Step {
    /// Rank 0 takes the lease and opens the stage; the others get its fences. A refusal reaches all ranks.
    fn open(
        stage: equipoise_config::Stage,
        recipe: Recipe,
        run: &Path,
        world: World,
        stop: StopFlag,
    ) -> Result<Self> {
        let vfs: Arc<dyn Vfs> = Arc::new(RealFs);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let run = RunDir::new(run);
        let dir = run.stage(&stage_key(&stage)?);
        let job = Job::here();
        if job.task.is_some() && stage.kind != equipoise_config::Kind::Generate {
            bail!(
                Config,
                "'{}' cannot be shared by the tasks of an array job: submit it as one job",
                stage.name
            );
        }
        let records = job.task.map_or_else(|| dir.clone(), |task| dir.task(task.index));
        let gradients = gradients::Choice::of(&world)?;
        let record = machine::record(&stage, gradients.facts(&stage, &world)?)?;
        machine::require_equal(world.comm(), &record)?;
        let opened = match world.comm().rank() {
            0 => Some(open_root(&vfs, &dir, &job, &record, &*clock)),
            _ => None,
        };
        let told = world.share(opened.as_ref().map(|opened| match opened {
            Ok(root) => Ok(Opened {
                attempt: root.stage.attempt(),
                fences: root.stage.guard().fences().to_vec(),
                left: job.time_left(&*clock).map(|left| left.as_secs_f64()),
            }),
            Err(error) => Err(error),
        }))?;
        let root = opened.transpose()?.map(Mutex::new);
        let path = records.log(told.attempt, world.comm().rank());
        let log =
            vfs.append(&prepared(&*vfs, &path)?).map_err(|error| Error::io("open the log", &path, error))?;
        equipoise_telemetry::init(Box::new(Log(log)), world.comm().rank(), root.is_some());
        let left = told.left.and_then(|left| Duration::try_from_secs_f64(left).ok());
        let step = Self {
            guard: LeaseGuard::from_fences(vfs.clone(), told.fences),
            deadline: Mutex::new(Deadline::after(left, FIRST_COMMIT, &*clock)),
            host: Process::current().host,
            started: Instant::now(),
            made: AtomicU64::new(0),
            pacer: Pacer::default(),
            work: Mutex::default(),
            traced: false,
            trace_file: None,
            attempt: told.attempt,
            identity: stage.identity.clone(),
            stage,
            recipe,
            run,
            dir,
            records,
            job,
            world,
            gradients,
            vfs,
            clock,
            stop,
            root,
        };
        step.announce()?;
        Ok(step)
    }

    /// A stage that was begun, to look at: one rank, no lease, no attempt, no log. Nothing can be committed through
    /// it, because no lease satisfies its fence.
    ///
    /// # Errors
    /// 78 naming what differs if this configuration or this machine would make other bits than the stage has; 65 if
    /// the stage was never begun.
    pub(crate) fn reader(run: &Path, name: &str) -> Result<Self> {
        let run = RunDir::new(run);
        let resolved = load_resolved(&run.config(), &[])?;
        let stage = find_stage(&resolved, name)?;
        let world = world::init()?;
        ensure!(
            world.comm().size() == 1,
            Usage,
            "only one rank can look at a stage: start it without mpirun"
        );
        init_runtime(&resolved.recipe, &stage, &world)?;
        let dir = run.stage(&stage_key(&stage)?);
        let begun =
            RealFs.exists(&dir.identity()).map_err(|error| Error::io("read", &dir.identity(), error))?;
        ensure!(begun, BadData, "{}: no such file: the stage was never begun", dir.identity().display());
        machine::record(&stage, BTreeMap::new())?.require(&RealFs, &dir.identity(), None)?;
        Self::unowned(stage, resolved.recipe, run, world, StopFlag::default())
    }

    /// A step without a lease: nothing can be committed through it, because no lease satisfies its fence.
    fn unowned(
        stage: equipoise_config::Stage,
        recipe: Recipe,
        run: RunDir,
        world: World,
        stop: StopFlag,
    ) -> Result<Self> {
        let vfs: Arc<dyn Vfs> = Arc::new(RealFs);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let dir = run.stage(&stage_key(&stage)?);
        let fence = Fence { dir: dir.lock(), generation: 0, nonce: String::new() };
        Ok(Self {
            guard: LeaseGuard::from_fences(vfs.clone(), vec![fence]),
            deadline: Mutex::new(Deadline::after(None, FIRST_COMMIT, &*clock)),
            host: Process::current().host,
            started: Instant::now(),
            made: AtomicU64::new(0),
            pacer: Pacer::default(),
            work: Mutex::default(),
            traced: false,
            trace_file: None,
            attempt: 0,
            identity: stage.identity.clone(),
            stage,
            recipe,
            run,
            records: dir.clone(),
            dir,
            job: Job::default(),
            gradients: gradients::Choice::of(&world)?,
            world,
            vfs,
            clock,
            stop,
            root: None,
        })
    }

    /// First lines of an attempt: where it runs and with what.
    fn announce(&self) -> Result<()> {
        if let Some(root) = &self.root {
            let root = lock(root);
            // Only folders that this stage alone writes: a neighbour's scratch files may be in use.
            let own = self.own_set();
            root.stage.gc(&own.as_deref().into_iter().collect::<Vec<_>>())?;
            let (name, attempt) = (&self.stage.name, self.attempt);
            equipoise_telemetry::info!(
                "{name}: attempt {attempt}, {} ranks, identity {}, equipoise {BUILD_ID}",
                self.world(),
                self.identity
            );
            if let Some(left) = lock(&self.deadline).left(&*self.clock) {
                let left = equipoise_telemetry::human_duration(left.as_secs_f64());
                equipoise_telemetry::info!("the job ends in {left}: what is finished is committed before");
            }
            drop(root);
            self.write_status(State::Running, None)?;
        }
        Ok(())
    }

    /// The folder of the set that this stage generates, if it does.
    fn own_set(&self) -> Option<PathBuf> {
        let params = &self.stage.params;
        let (set, seed) = (params["set"].as_str()?, params["seed"].as_u64()?);
        (self.stage.kind == equipoise_config::Kind::Generate).then(|| self.set_path(set, seed))
    }

    /// Whether this is rank 0.
    pub fn is_root(&self) -> bool {
        self.root.is_some()
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.comm().rank()
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.comm().size()
    }

    /// The group of ranks.
    pub fn comm(&self) -> &dyn Comm {
        self.world.comm()
    }

    /// The resolved recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Identity of the stage.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The stage's parameters.
    ///
    /// # Errors
    /// 78 naming the key that does not fit.
    pub fn params<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.stage.params.clone()).or_exit(ExitCode::Config, &self.stage.name)
    }

    /// Units for the ranks to share, handed out in this order; the stop of any rank reaches all.
    ///
    /// # Errors
    /// Those of the transport.
    pub fn claims(&self, units: Vec<usize>) -> Result<world::StageClaims> {
        let Some(task) = self.job.task else { return self.world.claims(units, self.stop.clone()) };
        let folder = ClaimFolder::open(self.vfs.clone(), &self.dir, self.attempt, task, self.job.restart)?;
        if self.is_root() {
            folder.clean()?;
        }
        self.comm().barrier()?;
        // The ranks of all tasks are alike: what one does not claim another does.
        let (world, rank) = (self.world(), self.rank());
        let (own, all) = (task.index as usize * world + rank, task.count as usize * world);
        Ok(world::StageClaims::Files(ClaimFiles::new(folder, &units, own, all, self.stop.clone())))
    }

    /// Which of how many equal parts of a stage this process has to look after: a task of an array job, or everything.
    pub fn part(&self) -> (u64, u64) {
        self.job.task.map_or((0, 1), |task| (task.index, task.count))
    }

    /// Shows progress in `status.json`, at most once a second unless `now`; on the root only.
    ///
    /// # Errors
    /// As [`Step::commit`].
    pub fn report_progress(&self, unit: &str, progress: &Progress, now: bool) -> Result<()> {
        self.world.beat();
        let Some(root) = &self.root else { return Ok(()) };
        let due = lock(root).last_status.is_none_or(|last| last.elapsed() >= STATUS_INTERVAL);
        if due || now {
            lock(root).last_status = Some(Instant::now());
            self.write_status(State::Running, Some((unit, progress)))?;
        }
        Ok(())
    }

    fn write_status(&self, state: State, progress: Option<(&str, &Progress)>) -> Result<()> {
        let Some(root) = &self.root else { return Ok(()) };
        let earlier = Status::read(&*self.vfs, &self.records).ok().flatten();
        let (unit, done, total, rate) = match progress {
            Some((unit, progress)) => {
                let snapshot = progress.snapshot();
                (unit.to_string(), snapshot.done, snapshot.total, Some(snapshot.rate))
            }
            None => {
                earlier.map_or((String::new(), 0, 0, None), |old| (old.unit, old.done, old.total, old.rate))
            }
        };
        let status = Status {
            stage: self.stage.name.clone(),
            state,
            unit,
            done,
            total,
            rate,
            attempt: self.attempt,
            ranks: self.world(),
            host: self.host.clone(),
            pid: std::process::id(),
            wall: self.clock.wall(),
        };
        lock(root).stage.write_status(&status)
    }

    /// A sign of life for the watchdog.
    pub fn comm_beat(&self) {
        self.world.beat();
    }

    /// Adds a row to `metrics.jsonl`; on the root only.
    ///
    /// # Errors
    /// As [`Step::commit`].
    pub fn metrics_row(&self, row: &Value) -> Result<()> {
        let Some(root) = &self.root else { return Ok(()) };
        let mut row = row.clone();
        row["attempt"] = self.attempt.into();
        lock(root).metrics.append(&row)
    }

    /// The checkpoints of this stage.
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(self.vfs.clone(), self.dir.checkpoints(), Some(self.guard.clone()))
    }

    /// A thread that saves checkpoints; on the root only.
    ///
    /// # Errors
    /// 74 if no thread can be started.
    pub fn checkpoint_writer(&self) -> Result<Option<CheckpointWriter>> {
        let keep = self.recipe.checkpoint.keep as usize;
        let start = || CheckpointWriter::start(self.checkpoints(), keep, self.clock.clone());
        self.root.as_ref().map(|_| start()).transpose()
    }

    /// The newest checkpoint that the root finds valid; every rank reads and verifies the same one.
    ///
    /// # Errors
    /// 74 if a file cannot be read, 65 if a rank does not see the root's checkpoint.
    pub fn newest_checkpoint(&self) -> Result<Option<Checkpoint>> {
        let checkpoints = self.checkpoints();
        let mut on_corrupt = |path: &Path, reason: &str| {
            equipoise_telemetry::warn!("set aside a damaged checkpoint as {}: {reason}", path.display());
        };
        let found = match &self.root {
            Some(_) => checkpoints.latest_valid(&mut on_corrupt)?,
            None => None,
        };
        let step = found.as_ref().map(|found| found.manifest.step.to_le_bytes().to_vec());
        let mut step = step.unwrap_or_default();
        self.comm().broadcast(&mut step, 0)?;
        let Ok(step) = <[u8; 8]>::try_from(step.as_slice()) else { return Ok(None) };
        if found.is_some() {
            return Ok(found);
        }
        match checkpoints.verify(u64::from_le_bytes(step))? {
            Ok(checkpoint) => Ok(Some(checkpoint)),
            Err(reason) => {
                bail!(BadData, "rank {} cannot read the checkpoint of rank 0: {reason}", self.rank())
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn open_root(
    vfs: &Arc<dyn Vfs>,
    dir: &StageDir,
    job: &Job,
    record: &IdentityRecord,
    clock: &dyn Clock,
) -> Result<Root> {
    let mut request = LeaseRequest::new(dir.lock(), clock);
    request.job = job.id.clone();
    request.restart = job.restart;
    request.is_job_known = Some(&job::is_known);
    let (stage, records) = match job.task {
        None => (Stage::open(vfs.clone(), dir.clone(), record, request)?, dir.clone()),
        Some(task) => {
            (Stage::open_task(vfs.clone(), dir, task.index, record, request)?, dir.task(task.index))
        }
    };
    let metrics = Journal::open(vfs.clone(), &records.metrics(), Some(stage.guard().clone()))?;
    Ok(Root { stage, metrics, last_status: None, products: Products::new() })
}

fn stage_key(stage: &equipoise_config::Stage) -> Result<StageKey> {
    let key = StageKey::parse(&stage.name);
    key.ok_or_else(|| Error::config(format!("'{}' is no name of a stage", stage.name)))
}
