//! The batch script of a stage: a pure function of the configuration and of where things lie.

use crate::quote::{directive, folder, word};
use crate::settings;
use crate::shape::Shape;
use askama::Template;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _, ensure};
use equipoise_config::slurm::{Container, Job, Launcher, Slurm};
use equipoise_config::{Kind, Stage};
use std::path::Path;

/// Copies inputs to the node: written beside the scripts that use it.
pub const STAGE_IN: &str = include_str!("../../../slurm/stage-in.sh");
/// Its name.
pub const STAGE_IN_NAME: &str = "stage-in.sh";

/// Everything that a script depends on.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `[slurm]`.
    pub slurm: &'a Slurm,
    /// Name of the run.
    pub name: &'a str,
    /// Run directory, absolute.
    pub run: &'a Path,
    /// The stage.
    pub stage: &'a Stage,
    /// Nodes and ranks.
    pub shape: Shape,
    /// The front end, absolute.
    pub front_end: &'a Path,
    /// The step binary, absolute; none for a stage that the front end does itself.
    pub program: Option<&'a Path>,
    /// CPUs of a rank unless the configuration says otherwise: its threads.
    pub threads: u32,
    /// Variables that every rank is started with.
    pub environment: &'a [(String, String)],
}

/// A rendered script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Stage.
    pub stage: String,
    /// The script.
    pub text: String,
    /// Nodes and ranks.
    pub shape: Shape,
}

impl Script {
    /// Its name in `RUN/slurm/`.
    pub fn file(&self) -> String {
        format!("{}.sh", self.stage)
    }
}

#[derive(Template)]
#[template(path = "job.sh")]
struct JobScript<'a> {
    directives: Vec<String>,
    stage: String,
    job: &'a str,
    name: String,
    run: String,
    front_end: String,
    modules: String,
    setup: Vec<String>,
    environment: Vec<(&'a str, String)>,
    scratch: Option<String>,
    inputs: String,
    nodes: u32,
    launch: Launch,
}

/// How the step is started.
enum Launch {
    Ranks(Launcher, String),
    Here(String),
}

/// Renders the script of a stage.
///
/// # Errors
/// 78 naming the key that cannot be used; 101 if the stage's name cannot be a file name.
pub fn render(request: &Request<'_>) -> Result<Script> {
    let stage = request.stage.name.as_str();
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    ensure!(stage.chars().all(legal), Bug, "stage '{stage}' cannot name a script");
    let job = settings::of_stage(request.slurm, stage)?;
    let inputs = inputs(request.stage);
    let scratch = job.scratch.as_deref().filter(|_| !inputs.is_empty());
    let mut environment: Vec<(&str, String)> =
        request.environment.iter().map(|(key, value)| (key.as_str(), word(value))).collect();
    environment.push(("EQUIPOISE_RANKS", request.shape.ranks.to_string()));
    let own = job.env.as_ref();
    environment.extend(own.iter().flat_map(|env| env.iter()).map(|(key, value)| (key, word(value))));
    let template = JobScript {
        directives: directives(request, &job),
        stage: word(stage),
        job: stage,
        name: word(request.name),
        run: word(request.run),
        front_end: word(request.front_end),
        modules: words(job.modules.iter().flatten()),
        setup: job.setup.clone().unwrap_or_default(),
        environment,
        scratch: scratch.map(folder),
        inputs: inputs.iter().map(|input| format!(" {}", word(input))).collect(),
        nodes: request.shape.nodes,
        launch: launch(request, &job)?,
    };
    let text = template.render().or_exit(ExitCode::Bug, "the template of the batch script")?;
    Ok(Script { stage: stage.into(), text: text.trim_end().to_string() + "\n", shape: request.shape })
}

pub(crate) fn words<'a>(list: impl Iterator<Item = &'a String>) -> String {
    list.map(word).collect::<Vec<_>>().join(" ")
}

/// The `#SBATCH` lines, without the prefix.
fn directives(request: &Request<'_>, job: &Job) -> Vec<String> {
    let (shape, stage) = (request.shape, &request.stage.name);
    let mut lines = vec![format!("--job-name={}.{stage}", request.name)];
    lines.extend(resources(job, shape, request.threads, &directive));
    let mut add = |option: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("--{option}={}", directive(&value))));
    };
    let at_once = job.array_at_once.map(|at_once| format!("%{at_once}")).unwrap_or_default();
    add("array", shape.array.map(|tasks| format!("0-{}{at_once}", tasks - 1)));
    let task = if shape.array.is_some() { ".%a" } else { "" };
    add("output", Some(format!("slurm/{stage}{task}.log")));
    add("open-mode", Some("append".into()));
    let shell = if request.slurm.launcher == Launcher::Mpirun { "B:" } else { "" };
    add("signal", Some(format!("{shell}USR2@{}", request.slurm.signal_lead)));
    lines.push("--requeue".into());
    lines.retain(|line| !is_skipped(job, line));
    lines.extend(job.extra.iter().flatten().cloned());
    lines
}

/// Options for what a job asks for; `quoted` is how a value stands behind its option.
pub(crate) fn resources(
    job: &Job,
    shape: Shape,
    threads: u32,
    quoted: &dyn Fn(&str) -> String,
) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |option: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("--{option}={}", quoted(&value))));
    };
    let text = |value: &Option<String>| value.clone();
    add("account", text(&job.account));
    add("partition", text(&job.partition));
    add("qos", text(&job.qos));
    add("constraint", text(&job.constraint));
    add("reservation", text(&job.reservation));
    add("time", text(&job.time));
    add("nodes", Some(shape.nodes.to_string()));
    add("ntasks", Some(shape.ranks.to_string()));
    add("ntasks-per-node", shape.ranks_per_node.map(|each| each.to_string()));
    add("cpus-per-task", Some(job.cpus_per_task.unwrap_or(threads).to_string()));
    add("mem", text(&job.mem));
    add("mem-per-cpu", text(&job.mem_per_cpu));
    add("mem-per-gpu", text(&job.mem_per_gpu));
    add("gres", text(&job.gres));
    add("gpus", text(&job.gpus));
    add("gpus-per-node", text(&job.gpus_per_node));
    add("gpus-per-task", text(&job.gpus_per_task));
    lines
}

/// Whether the configuration leaves this option out.
pub(crate) fn is_skipped(job: &Job, line: &str) -> bool {
    let option = line.split('=').next().unwrap_or_default();
    job.skip.iter().flatten().any(|skip| skip.trim_start_matches('-') == option.trim_start_matches('-'))
}

/// The command that runs the step.
fn launch(request: &Request<'_>, job: &Job) -> Result<Launch> {
    let Some(program) = request.program else {
        return Ok(Launch::Here("\"$equipoise\" report \"$run\"".into()));
    };
    let step = match &job.container {
        None => word(program),
        Some(container) => contained(container, program, request.run)?,
    };
    let step = format!("{step} \\\n    --config \"$run/config.toml\" --run \"$run\" --set \"stage=$stage\"");
    let cpus = job.cpus_per_task.unwrap_or(request.threads);
    let command = format!("{} \\\n    {step}", start(request.slurm, request.shape.ranks, cpus));
    Ok(Launch::Ranks(request.slurm.launcher, command))
}

/// What starts so many ranks of the program that follows.
pub(crate) fn start(slurm: &Slurm, ranks: u32, cpus: u32) -> String {
    match slurm.launcher {
        Launcher::Srun => format!(
            "srun --kill-on-bad-exit=1 --mpi={} --ntasks={ranks} --cpus-per-task={cpus}",
            word(&slurm.mpi)
        ),
        Launcher::Mpirun => {
            let further: String =
                slurm.mpirun_args.iter().map(|argument| format!(" {}", word(argument))).collect();
            format!("mpirun -n {ranks} --bind-to none{further}")
        }
    }
}

/// The step inside its container: the MPI of the host starts it, that of the image must be of the same kind.
pub(crate) fn contained(container: &Container, program: &Path, run: &Path) -> Result<String> {
    if run.to_string_lossy().contains([':', ',']) {
        let message = format!("{}: a container cannot bind a path with ':' or ','", run.display());
        return Err(Error::config(message).next("give another --run"));
    }
    let scratch = "${EQUIPOISE_SCRATCH:+--bind \"$EQUIPOISE_SCRATCH\"}";
    let mut line = format!("{} exec --bind \"$run\" {scratch} \\\n   ", word(&container.program));
    for bind in &container.binds {
        line += &format!(" --bind {}", word(bind));
    }
    if container.nv {
        line += " --nv";
    }
    let inside = match (&container.bin, program.file_name()) {
        (Some(bin), Some(name)) => word(Path::new(bin).join(name)),
        _ => word(program),
    };
    Ok(format!("{line} {} \\\n    {inside}", word(&container.image)))
}

/// What a stage reads from the run directory, by path within it.
fn inputs(stage: &Stage) -> Vec<String> {
    let folder = |name: &String| {
        let set = name.strip_prefix("generate.").map(|set| format!("sets/{set}"));
        set.or_else(|| name.starts_with("prepare.").then(|| format!("stages/{name}"))).or_else(|| {
            let split = name.strip_prefix("embed-images.");
            split.map(|split| format!("features/clip-images/{split}.h5"))
        })
    };
    match stage.kind {
        Kind::Report | Kind::Prepare | Kind::Toy => Vec::new(),
        _ => stage.after.iter().filter_map(folder).collect(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use equipoise_base::Identity;
    use equipoise_config::Resolved;
    use equipoise_config::layers::{default_layer, file_layer};
    use equipoise_config::source::Layer;
    use serde_json::Value;

    /// `[slurm]` with its defaults and these keys.
    #[allow(clippy::disallowed_methods)]
    pub(crate) fn slurm(keys: &str) -> Slurm {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("site.toml");
        let keys = keys.replace("[stages", "[slurm.stages").replace("[container", "[slurm.container");
        std::fs::write(&file, format!("[run]\nname = 'x'\n[slurm]\n{}", keys.replace("[env", "[slurm.env")))
            .unwrap();
        let layers = [default_layer(), file_layer(Layer::Recipe, &file).unwrap()];
        Resolved::from_layers(layers).unwrap_or_else(|wrong| panic!("{wrong:?}")).recipe.slurm
    }

    /// A stage of this kind.
    pub(crate) fn stage(kind: Kind, name: &str) -> Stage {
        Stage {
            name: name.into(),
            kind,
            after: Vec::new(),
            params: Value::Null,
            decides: Value::Null,
            identity: Identity::of(name),
        }
    }
}
