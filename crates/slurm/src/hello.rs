//! The script of `equipoise doctor --node`: two ranks, started as those of a run would be.

use crate::quote::word;
use crate::script::{contained, resources, start, words};
use crate::shape::Shape;
use askama::Template;
use equipoise_base::{ExitCode, Result, ResultExt as _};
use equipoise_config::slurm::Slurm;
use std::ffi::OsString;
use std::path::Path;

/// Ranks that greet each other.
pub const RANKS: u32 = 2;
/// Ranks that have not found each other by then never will. A cold start of libtorch from a shared disk takes a minute.
const SECONDS: u32 = 180;
/// Minutes that the allocation is asked for.
const MINUTES: &str = "5";

/// Everything that the script depends on.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `[slurm]`.
    pub slurm: &'a Slurm,
    /// Where runs are to be made, absolute.
    pub root: &'a Path,
    /// The step binary, absolute.
    pub program: &'a Path,
    /// CPUs of a rank unless the configuration says otherwise: its threads.
    pub threads: u32,
    /// Variables that every rank is started with.
    pub environment: &'a [(String, String)],
    /// mpirun with its arguments, to use on this machine instead of what `[slurm]` names.
    pub local: Option<&'a [OsString]>,
}

#[derive(Template)]
#[template(path = "hello.sh")]
struct HelloScript<'a> {
    run: String,
    modules: String,
    setup: Vec<String>,
    environment: Vec<(&'a str, String)>,
    seconds: u32,
    command: String,
}

/// Renders the script.
///
/// # Errors
/// 78 naming the key that cannot be used.
pub fn render(request: &Request<'_>) -> Result<String> {
    let (slurm, job) = (request.slurm, &request.slurm.job);
    // In a container only what is bound can be looked at.
    let scratch = job.scratch.as_ref().filter(|_| job.container.is_none());
    let scratch = scratch.map(|scratch| format!(" --scratch {}", word(scratch)));
    let arguments = format!(" --hello \"$run\"{}", scratch.unwrap_or_default());
    let mut environment: Vec<(&str, String)> =
        request.environment.iter().map(|(key, value)| (key.as_str(), word(value))).collect();
    environment.push(("EQUIPOISE_RANKS", RANKS.to_string()));
    let command = match request.local {
        Some(mpirun) => {
            let mpirun: Vec<String> = mpirun.iter().map(word).collect();
            format!("{} {}{arguments}", mpirun.join(" "), word(request.program))
        }
        None => {
            let own = job.env.as_ref();
            environment.extend(own.iter().flat_map(|env| env.iter()).map(|(key, value)| (key, word(value))));
            let program = match &job.container {
                None => word(request.program),
                Some(container) => contained(container, request.program, request.root)?,
            };
            let cpus = job.cpus_per_task.unwrap_or(request.threads);
            format!("{} \\\n    {program}{arguments}", start(slurm, RANKS, cpus))
        }
    };
    let in_job = request.local.is_none();
    let script = HelloScript {
        run: word(request.root),
        modules: if in_job { words(job.modules.iter().flatten()) } else { String::new() },
        setup: job.setup.clone().filter(|_| in_job).unwrap_or_default(),
        environment,
        seconds: SECONDS,
        command,
    };
    script.render().or_exit(ExitCode::Bug, "the template of the hello script")
}

/// Options of salloc for the allocation that the script needs: what a job of a stage asks for, on two nodes if jobs
/// take more than one, and for minutes only.
pub fn allocation(slurm: &Slurm, threads: u32) -> Vec<String> {
    let mut job = slurm.job.clone();
    job.time = Some(MINUTES.into());
    let nodes = job.nodes.unwrap_or(1).min(RANKS);
    let shape = Shape { nodes, ranks: RANKS, ranks_per_node: None, array: None };
    let mut options = vec!["--job-name=equipoise-doctor".to_string()];
    options.extend(resources(&job, shape, threads, &|value| value.to_string()));
    let skipped = |line: &String| crate::script::is_skipped(&job, line);
    options.retain(|line| !skipped(line));
    options.extend(job.extra.iter().flatten().cloned());
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::tests::slurm;

    fn script(keys: &str, local: Option<&[OsString]>) -> String {
        let environment = [("OMP_NUM_THREADS".to_string(), "1".to_string())];
        render(&Request {
            slurm: &slurm(keys),
            root: Path::new("/scratch/a b"),
            program: Path::new("/opt/bin/equipoise-train"),
            threads: 1,
            environment: &environment,
            local,
        })
        .unwrap()
    }

    #[test]
    fn the_launcher_of_a_run_starts_the_ranks() {
        insta::assert_snapshot!(script(
            "mpi = 'pmi2'\nmodules = ['openmpi/4.1']\nsetup = ['ulimit -n 4096']\nscratch = '$TMPDIR/x'\n[env]\nA = 'b c'",
            None
        ));
    }

    #[test]
    fn a_machine_without_slurm_uses_its_mpirun_and_no_modules() {
        let mpirun = ["/usr/bin/mpirun", "-n", "2"].map(OsString::from);
        let script = script("modules = ['openmpi']\nsetup = ['exit 1']", Some(&mpirun));
        assert!(!script.contains("module") && !script.contains("exit 1"), "{script}");
        let expected = "exec timeout 180 /usr/bin/mpirun -n 2 /opt/bin/equipoise-train --hello \"$run\"";
        assert!(script.contains(expected), "{script}");
    }

    #[test]
    fn the_allocation_is_that_of_a_job_but_short_and_small() {
        let keys = "partition = 'low'\ntime = '8:00:00'\nnodes = 16\nntasks_per_node = 4\nmem_per_cpu = '2G'\n\
                    extra = ['--exclude=n17']\nskip = ['--cpus-per-task']";
        let options = allocation(&slurm(keys), 1);
        let expected = [
            "--job-name=equipoise-doctor",
            "--partition=low",
            "--time=5",
            "--nodes=2",
            "--ntasks=2",
            "--mem-per-cpu=2G",
            "--exclude=n17",
        ];
        assert_eq!(options, expected);
        assert!(allocation(&slurm(""), 1).contains(&"--nodes=1".to_string()));
    }
}
