//! `[slurm]`: how the stages of a run become batch jobs. None of it decides bits, so all of it is elastic.

use crate::named::Named;
use crate::problem::Problems;
use crate::resolved::Resolved;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[slurm]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Slurm {
    /// What starts the ranks.
    pub launcher: Launcher,
    /// MPI flavour that srun offers its tasks: a name from `srun --mpi=list`.
    #[schemars(length(min = 1))]
    pub mpi: String,
    /// Further arguments of mpirun.
    pub mpirun_args: Vec<String>,
    /// Seconds before the time limit at which the stages are told to stop.
    #[schemars(range(min = 1, max = 65535))]
    pub signal_lead: u32,
    /// Seconds that the ranks may take to begin; 0: for ever.
    pub start_timeout: u32,
    /// How often a job may requeue itself.
    pub requeue_budget: u32,
    /// Requeues in a row without progress after which a job gives up.
    #[schemars(range(min = 1))]
    pub max_stalls: u32,
    /// Seconds after which a requeued job may start; 0 leaves Slurm's own delay.
    #[schemars(range(max = 3600))]
    pub requeue_delay: u32,
    /// Losses of a node in this run after which its jobs keep away from it; 0: never.
    pub exclude_after: u32,
    /// What every job asks for.
    #[serde(flatten)]
    pub job: Job,
    /// Where jobs of some stages differ, by patterns of stage names; later ones win.
    #[serde(default)]
    pub stages: Named<Job>,
}

/// What starts the ranks of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Launcher {
    /// srun.
    Srun,
    /// mpirun within the allocation.
    Mpirun,
}

/// Keys of `[slurm]` and of `[slurm.stages."PATTERN"]`; what is left out is not asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Account.
    pub account: Option<String>,
    /// Partition, or several with commas.
    pub partition: Option<String>,
    /// Quality of service.
    pub qos: Option<String>,
    /// Features of the nodes.
    pub constraint: Option<String>,
    /// Reservation.
    pub reservation: Option<String>,
    /// Time limit in one of Slurm's forms.
    pub time: Option<String>,
    /// Nodes.
    #[schemars(range(min = 1))]
    pub nodes: Option<u32>,
    /// Ranks per node.
    #[schemars(range(min = 1))]
    pub ntasks_per_node: Option<u32>,
    /// CPUs of a rank; `run.threads` if left out.
    #[schemars(range(min = 1))]
    pub cpus_per_task: Option<u32>,
    /// Memory per node.
    pub mem: Option<String>,
    /// Memory per CPU.
    pub mem_per_cpu: Option<String>,
    /// Memory per GPU.
    pub mem_per_gpu: Option<String>,
    /// Generic resources per node.
    pub gres: Option<String>,
    /// GPUs of the job.
    pub gpus: Option<String>,
    /// GPUs of a node.
    pub gpus_per_node: Option<String>,
    /// GPUs of a rank.
    pub gpus_per_task: Option<String>,
    /// Tasks of a job array, for the stages that can be one: each is a job on one node.
    #[schemars(range(min = 1))]
    pub array: Option<u32>,
    /// How many tasks of an array may run at once.
    #[schemars(range(min = 1))]
    pub array_at_once: Option<u32>,
    /// Further directives, such as `--exclude=n17`.
    pub extra: Option<Vec<String>>,
    /// Directives to leave out, such as `--requeue`.
    pub skip: Option<Vec<String>>,
    /// Environment modules to load.
    pub modules: Option<Vec<String>>,
    /// Lines of bash to run before the step.
    pub setup: Option<Vec<String>>,
    /// Environment variables.
    pub env: Option<Named<String>>,
    /// Container to run the step in.
    pub container: Option<Container>,
    /// Folder on the node's own disk to copy inputs to, such as `$SLURM_TMPDIR`.
    pub scratch: Option<String>,
}

/// `[slurm.container]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Container {
    /// Image: a path or what else the program takes.
    pub image: String,
    /// `apptainer`, or `singularity`.
    #[serde(default = "apptainer")]
    pub program: String,
    /// Folders to bind, `from` or `from:to`; the run directory always is.
    #[serde(default)]
    pub binds: Vec<String>,
    /// Bring in the driver of the GPU.
    #[serde(default)]
    pub nv: bool,
    /// Folder of the step binaries within the image; those of the front end if left out.
    pub bin: Option<String>,
}

fn apptainer() -> String {
    "apptainer".into()
}

/// The three forms of memory: Slurm takes one of them, and so a stronger layer's replaces a weaker one's.
pub const MEMORY: [&str; 3] = ["mem", "mem_per_cpu", "mem_per_gpu"];

/// Combinations that Slurm refuses or a script cannot hold.
pub(crate) fn problems(resolved: &Resolved) -> Problems {
    let slurm = &resolved.recipe.slurm;
    let mut problems = Problems::default();
    job_problems(resolved, "slurm", &slurm.job, &mut problems);
    for (pattern, job) in slurm.stages.iter() {
        job_problems(resolved, &format!("slurm.stages.{}", quoted(pattern)), job, &mut problems);
    }
    problems
}

fn quoted(key: &str) -> String {
    crate::layers::quoted(key)
}

fn job_problems(resolved: &Resolved, path: &str, job: &Job, problems: &mut Problems) {
    let mut wrong = |key: &str, message: String| {
        let origin = table(resolved, path).and_then(|table| table.get(key)).map(|node| node.origin.clone());
        problems.push(origin.as_ref(), format!("{path}.{key}: {message}"));
    };
    let memory = [&job.mem, &job.mem_per_cpu, &job.mem_per_gpu];
    let given: Vec<&str> =
        MEMORY.into_iter().zip(memory).filter(|(_, value)| value.is_some()).map(|(key, _)| key).collect();
    if let [first, second, ..] = given[..] {
        wrong(second, format!("Slurm takes one form of memory, and {path}.{first} is set too"));
    }
    let directives = [
        ("account", &job.account),
        ("partition", &job.partition),
        ("qos", &job.qos),
        ("constraint", &job.constraint),
        ("reservation", &job.reservation),
        ("time", &job.time),
        ("mem", &job.mem),
        ("mem_per_cpu", &job.mem_per_cpu),
        ("mem_per_gpu", &job.mem_per_gpu),
        ("gres", &job.gres),
        ("gpus", &job.gpus),
        ("gpus_per_node", &job.gpus_per_node),
        ("gpus_per_task", &job.gpus_per_task),
    ];
    for (key, value) in directives {
        if let Some(value) = value
            && (value.is_empty() || value.contains(|c: char| c.is_control() || "'\"\\".contains(c)))
        {
            wrong(key, format!("{value:?} cannot stand in a directive: no quotes, backslashes, line breaks"));
        }
    }
    for directive in job.extra.iter().flatten() {
        if !directive.starts_with('-') || directive.contains(char::is_control) {
            wrong("extra", format!("{directive:?} is no directive: it must begin with '-', on one line"));
        }
    }
    for (name, _) in job.env.iter().flat_map(Named::iter) {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !name.chars().all(legal) || name.starts_with(|c: char| c.is_ascii_digit()) || name.is_empty() {
            wrong("env", format!("{name:?} cannot name an environment variable"));
        }
    }
    if let Some(Container { image, .. }) = job.container.as_ref().filter(|it| it.image.starts_with('-')) {
        wrong("container", format!("image = {image:?} would be taken for an option"));
    }
    if let Some(scratch) = job.scratch.as_ref().filter(|scratch| !scratch.starts_with(['/', '$'])) {
        wrong("scratch", format!("{scratch:?} must be an absolute path, or begin with a variable"));
    }
}

/// The table at `slurm` or `slurm.stages."PATTERN"`: a pattern may hold dots.
fn table<'a>(resolved: &'a Resolved, path: &str) -> Option<&'a crate::tree::Node> {
    let slurm = resolved.at("slurm")?;
    if path == "slurm" {
        return Some(slurm);
    }
    let stages = slurm.get("stages")?;
    let entry = stages.entries().iter().find(|entry| path == format!("slurm.stages.{}", quoted(&entry.key)));
    entry.map(|entry| &entry.node)
}
