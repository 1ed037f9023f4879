//! `equipoise doctor --node`: what a compute node has, and whether ranks find each other there.

use super::{Finding, cluster};
use crate::runner;
use crate::steps;
use equipoise_base::{Error, Result};
use equipoise_comm::mpirun::Flavour;
use equipoise_slurm::hello::{self, Request};
use equipoise_slurm::{Commands, Failure, query};
use serde::Deserialize;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// For the allocation and for the ranks.
const LIMIT: Duration = Duration::from_secs(600);
/// A controller that is there answers within seconds.
const CONTROLLER: Duration = Duration::from_secs(20);
/// Any step binary can greet; this one is linked with everything.
const PROGRAM: &str = "equipoise-train";
/// Prints what the script prints, errors included, and how it ended.
const REPORTING: &str = r#"bash -c "$1" 2>&1; echo "{\"status\":$?}""#;

/// What a rank found on its host.
#[derive(Debug, Deserialize)]
struct Check {
    host: String,
    check: String,
    passed: bool,
    found: String,
}

#[derive(Debug, Deserialize)]
struct Hello {
    hello: Vec<Check>,
}

#[derive(Debug, Deserialize)]
struct Status {
    status: i32,
}

/// Where the ranks are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Here: there is no Slurm.
    Here,
    /// In the allocation that this process is in.
    Allocation,
    /// In one of our own.
    Salloc,
}

/// Starts two ranks as a run would start them, and has them look around.
///
/// # Errors
/// 78 if the configuration is wrong or nothing can start the ranks.
pub fn findings(root: &Path, sets: &[String]) -> Result<Vec<Finding>> {
    let recipe = cluster::configured(sets)?;
    let root = std::path::absolute(root).map_err(|error| Error::io("find", root, error))?;
    let program = match &recipe.slurm.job.container {
        None => steps::of_this_build(PROGRAM)?,
        // It may be in the image only.
        Some(_) => steps::front_end()?.with_file_name(PROGRAM),
    };
    let place = place();
    let environment = runner::environment(&recipe.run)?;
    let mpirun = (place == Place::Here).then(|| local(&environment)).transpose()?;
    let script = hello::render(&Request {
        slurm: &recipe.slurm,
        root: &root,
        program: &program,
        threads: recipe.run.threads,
        environment: &environment,
        local: mpirun.as_deref(),
    })?;
    let shell = ["-c", REPORTING, "hello", &script].map(String::from);
    let commands = Commands::within(LIMIT);
    let answer = match place {
        Place::Here | Place::Allocation => commands.run("bash", &shell),
        Place::Salloc => {
            eprintln!("waiting for Slurm to give two CPUs for some minutes; Ctrl-C gives up");
            let mut args = vec!["--quiet".to_string()];
            args.extend(hello::allocation(&recipe.slurm, recipe.run.threads));
            args.push("bash".into());
            args.extend(shell);
            commands.run("salloc", &args)
        }
    };
    Ok(match answer {
        Ok(answer) => read(&answer.out),
        Err(failure) => vec![Finding::new("MPI hello", Err(hint(&failure)))],
    })
}

/// Slurm's commands may be installed where no controller answers.
fn place() -> Place {
    match std::env::var_os("SLURM_JOB_ID") {
        Some(_) => Place::Allocation,
        None if query::config(&Commands::within(CONTROLLER)).is_ok() => Place::Salloc,
        None => Place::Here,
    }
}

/// mpirun as `equipoise run` starts it, without the program.
fn local(environment: &[(String, String)]) -> Result<Vec<OsString>> {
    let mpirun = runner::mpirun()?;
    let flavour = Flavour::detect(&mpirun)?;
    let mut line = flavour.arguments(hello::RANKS as usize, environment, Path::new(""), &[]);
    line.pop();
    line.insert(0, mpirun.into());
    Ok(line)
}

fn hint(failure: &Failure) -> String {
    match failure {
        Failure::Hiccup(text) if text.contains("timed out") => {
            format!("{text}; ask for an allocation yourself (salloc), and type the same in it")
        }
        failure => failure.to_string(),
    }
}

/// The findings among what was printed; without them, why the ranks ended.
fn read(printed: &str) -> Vec<Finding> {
    let lines = || printed.lines().map(str::trim);
    let hello = lines().find_map(|line| serde_json::from_str::<Hello>(line).ok());
    let status = lines().rev().find_map(|line| serde_json::from_str::<Status>(line).ok());
    match (hello, status.map(|status| status.status)) {
        (Some(Hello { hello }), Some(0)) => grouped(hello),
        (_, status) => vec![Finding::new("MPI hello", Err(reason(lines(), status)))],
    }
}

/// Our own message if there is one: launchers say a lot about a rank that has ended.
fn reason<'a>(lines: impl Iterator<Item = &'a str> + Clone, status: Option<i32>) -> String {
    let ours =
        lines.clone().find_map(|line| line.split_once("error: ").filter(|(before, _)| before.len() < 8));
    let said = ours.map(|(_, message)| message).or_else(|| lines.clone().find(|line| !line.is_empty()));
    match (said, status) {
        (_, Some(124)) => "the ranks did not find each other in time: check slurm.mpi and the network".into(),
        (Some(said), _) => said.to_string(),
        (None, _) => "the ranks ended without a word".into(),
    }
}

/// One line where all hosts found the same.
fn grouped(checks: Vec<Check>) -> Vec<Finding> {
    let mut findings: Vec<(Check, Vec<String>)> = Vec::new();
    for check in checks {
        let same = |(other, _): &&mut (Check, Vec<String>)| {
            (&other.check, other.passed, &other.found) == (&check.check, check.passed, &check.found)
        };
        match findings.iter_mut().find(same) {
            Some((_, hosts)) => hosts.push(check.host),
            None => {
                let hosts = vec![check.host.clone()];
                findings.push((check, hosts));
            }
        }
    }
    let finding = |(check, hosts): (Check, Vec<String>)| {
        let found = format!("{}: {}", hosts.join(", "), check.found);
        Finding { check: check.check, passed: check.passed, found }
    };
    findings.into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = r#"{"hello":[
        {"host":"n1","check":"MPI hello","passed":true,"found":"2 ranks"},
        {"host":"n1","check":"GPU","passed":true,"found":"none"},
        {"host":"n2","check":"GPU","passed":true,"found":"none"},
        {"host":"n1","check":"clock","passed":true,"found":"+0.0 s"},
        {"host":"n2","check":"clock","passed":false,"found":"+99.0 s"}]}"#;

    fn texts(printed: &str) -> Vec<(String, bool, String)> {
        read(printed).into_iter().map(|finding| (finding.check, finding.passed, finding.found)).collect()
    }

    #[test]
    fn hosts_that_found_the_same_share_a_line() {
        let printed = format!("Loading openmpi\n{}\n{{\"status\":0}}\n", HELLO.replace('\n', ""));
        let expected = [
            ("MPI hello", true, "n1: 2 ranks"),
            ("GPU", true, "n1, n2: none"),
            ("clock", true, "n1: +0.0 s"),
            ("clock", false, "n2: +99.0 s"),
        ];
        let expected = expected.map(|(check, passed, found)| (check.into(), passed, found.into()));
        assert_eq!(texts(&printed), expected);
    }

    #[test]
    fn without_a_greeting_the_reason_is_told() {
        let found = |printed: &str| {
            let found = texts(printed);
            assert!(found.len() == 1 && !found[0].1, "{found:?}");
            found[0].2.clone()
        };
        let wrong =
            "srun: launching\nerror: 2 ranks were started, set slurm.mpi\nsrun: error: n1: task 0: Exited";
        assert_eq!(found(&format!("{wrong}\n{{\"status\":78}}")), "2 ranks were started, set slurm.mpi");
        assert!(found("{\"status\":124}").contains("did not find each other in time"));
        assert_eq!(found("mpirun: not found\n{\"status\":127}"), "mpirun: not found");
        // A greeting of ranks that then failed is none.
        assert!(!found(&format!("{}\n{{\"status\":1}}", HELLO.replace('\n', ""))).is_empty());
    }
}
