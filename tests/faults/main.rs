//! Kills through the public commands: whatever dies, the same command ends with the bytes of the uninterrupted run.
//!
//! `EQUIPOISE_KILLS=20` asks for as many trials of each kind; CI makes do with fewer.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod completion;
mod files;
mod locks;
mod slow;
#[path = "../support/mod.rs"]
mod support;
mod training;

use equipoise_base::rng::Key;
use equipoise_testkit::{Process, TempRun, figure};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::{PATIENCE, assert_same, copy_without, equipoise, finish, results, run};

/// Enough images and steps that a kill lands in the middle, in the stages that are hit.
const SETS: [&str; 2] = ["sets.feedback.plan.n=40", "arms.ce.steps=1000"];
const SURVIVORS_GONE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
enum Victim {
    OneRank,
    AllRanks,
    Mpirun,
}

fn trials(default: u64) -> u64 {
    std::env::var("EQUIPOISE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn reference() -> TempRun {
    let reference = TempRun::default();
    finish(run(&reference.join("run"), 2, &SETS));
    reference
}

/// SIGKILLs what `is_victim` accepts; how many.
fn kill_all(process: &Process, is_victim: impl Fn(&str) -> bool) -> usize {
    let victims: Vec<_> = process.live().into_iter().filter(|found| is_victim(&found.command)).collect();
    victims.iter().for_each(|found| equipoise_testkit::tree::send(found.pid, libc::SIGKILL));
    victims.len()
}

/// The committed shards of a run, each a line of inode and path; a file made again has another inode.
fn shard_files(run: &Path) -> BTreeSet<String> {
    let mut find = Command::new("find");
    find.arg(run.join("sets")).args(["-name", "*.h5", "-not", "-path", "*/.parts/*", "-printf", "%i %P\n"]);
    let output = find.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Kills in `stage` at a keyed moment, resumes, compares.
fn trial(finished: &TempRun, stage: &str, victim: Victim, trial: u64) {
    let downstream = |name: &str| name == stage || ["evaluate", "metrics", "report"].contains(&name);
    let copy = copy_without(finished, downstream);
    let path = copy.join("run");
    let mut process = Process::spawn(run(&path, 2, &SETS));
    process.wait_for_output(&format!("{stage}: attempt"), PATIENCE);
    let mut random = Key::new(trial, "kill").class(victim as u64).stream();
    std::thread::sleep(Duration::from_secs_f64(random.range(0., 1.2)));
    let of_stage = |args: &str| args.contains(&format!("stage={stage}"));
    let is_rank = |args: &str| of_stage(args) && !args.contains("mpirun");
    let is_mpirun = |args: &str| of_stage(args) && args.contains("mpirun");
    let what = format!("{victim:?} in {stage}, trial {trial}");
    let hits = match victim {
        Victim::OneRank => {
            let killed = process.kill_child(Key::new(trial, "which"), |found| is_rank(&found.command));
            usize::from(killed.is_some())
        }
        Victim::AllRanks => kill_all(&process, is_rank),
        Victim::Mpirun => kill_all(&process, is_mpirun),
    };
    assert!(hits > 0, "{what}: the stage was over before the kill");
    let status = process.wait(PATIENCE);
    process.wait_for_no_orphans(SURVIVORS_GONE);
    assert_ne!(status.code(), Some(75), "{what}: nobody asked for a stop");
    let committed = shard_files(&path);
    finish(equipoise(&["resume", path.to_str().unwrap()]));
    // So at most the shard that each rank was at is made again.
    assert!(committed.is_subset(&shard_files(&path)), "{what}: a committed shard was made again");
    assert_same(&results(&finished.join("run")), &results(&path), &what);
}

#[test]
fn kills_in_generation_change_nothing() {
    let finished = reference();
    let mut kills = 0;
    for (victim, count) in
        [(Victim::OneRank, trials(1)), (Victim::AllRanks, trials(1)), (Victim::Mpirun, trials(1).min(2))]
    {
        (0..count).for_each(|n| trial(&finished, "generate.feedback.k0", victim, n));
        kills += count;
    }
    figure("F1", "kills at random moments, the same bytes after each", kills);
}

#[test]
fn kills_in_training_change_nothing() {
    let finished = reference();
    let mut kills = 0;
    for (victim, count) in
        [(Victim::OneRank, trials(1)), (Victim::AllRanks, trials(1)), (Victim::Mpirun, trials(1).min(2))]
    {
        (0..count).for_each(|n| trial(&finished, "train.ce.s0", victim, n));
        kills += count;
    }
    figure("F2", "kills at random moments, the same bytes after each", kills);
}

/// Whether a command line is that of the process to signal.
type IsTarget<'a> = &'a dyn Fn(&str) -> bool;

/// Ctrl-C and TERM to the front end, TERM to mpirun and to one rank: finished work is kept, 75, and `resume` goes on.
#[test]
fn a_stop_is_75_and_resume_goes_on() {
    let finished = reference();
    let is_rank = |args: &str| args.contains("--set stage=") && !args.contains("mpirun");
    let is_mpirun = |args: &str| args.contains("mpirun");
    let is_front_end = |args: &str| args.contains("equipoise run");
    let cases: [(&str, i32, IsTarget<'_>); 4] = [
        ("INT to the front end", libc::SIGINT, &is_front_end),
        ("TERM to the front end", libc::SIGTERM, &is_front_end),
        ("TERM to mpirun", libc::SIGTERM, &is_mpirun),
        ("TERM to one rank", libc::SIGTERM, &is_rank),
    ];
    for (name, signal, is_target) in cases {
        let copy = copy_without(&finished, |name| name == "generate.feedback.k0" || name == "metrics");
        let path = copy.join("run");
        let mut process = Process::spawn(run(&path, 2, &SETS));
        process.wait_for_output("generate.feedback.k0: attempt", PATIENCE);
        let live = process.live();
        let target = live.iter().find(|found| is_target(&found.command));
        equipoise_testkit::tree::send(target.expect("the target is alive").pid, signal);
        let status = process.wait(PATIENCE);
        process.wait_for_no_orphans(SURVIVORS_GONE);
        assert_eq!(status.code(), Some(75), "{name}:\n{}", process.output());
        finish(equipoise(&["resume", path.to_str().unwrap()]));
        assert_same(&results(&finished.join("run")), &results(&path), name);
    }
    figure("F5", "ways to be told to stop, in generation", cases.len());
}
