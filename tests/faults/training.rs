//! Faults at every place where training changes the disk: kills, stops, failing devices, damage, and numbers that are none
//! (F2, F5, F6, F7, F10, F24). Each ends with the weights and losses of the run that nothing happened to.

use crate::support::{PATIENCE, copy_without, equipoise, finish, run_recipe};
use crate::{SURVIVORS_GONE, trials};
use equipoise_testkit::{Process, TempRun, figure, tree, wait_until};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const STAGE: &str = "train.ce.s0";
/// Steps between checkpoints.
const EVERY: u64 = 8;
const SETS: [&str; 3] = ["classifier.steps=24", "checkpoint.every_steps=8", "classifier.log_every=2"];
/// So long that a signal lands in the middle.
const LONG: [&str; 3] = ["classifier.steps=400", "checkpoint.every_steps=50", "classifier.log_every=1"];

fn training(path: &Path, sets: &[&str]) -> Command {
    run_recipe("train", path, 2, sets)
}

/// The run that nothing happens to, and the trace of its writes.
fn reference(sets: &[&str]) -> (TempRun, String) {
    let run = TempRun::default();
    let trace = run.join("trace");
    let mut command = training(&run.join("run"), sets);
    command.env("EQUIPOISE_FAIL_TRACE", &trace);
    finish(command);
    let trace = std::fs::read_to_string(trace).unwrap();
    (run, trace)
}

/// A write: the rank that makes it, the call, and what to look for in its path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    rank: u32,
    call: String,
    path: String,
}

/// The different writes of a trace. Of files that come with every checkpoint, those of the second are taken: there is
/// then something to fall back to and something that follows. Which rank makes the folder of the logs is left to chance.
fn points(trace: &str) -> Vec<Point> {
    let other_step = |point: &Point| point.path.contains("step-") && !point.path.contains("step-00000016");
    let raced = |point: &Point| point.call == "create_dir" && point.path.starts_with("logs");
    let points = trace.lines().filter_map(Point::of_line);
    let points = points.filter(|point| !other_step(point) && !raced(point));
    points.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The longest part of a path without what differs between attempts: `.model.0123abcd-....tmp` is the scratch of `model`.
fn stable(path: &str) -> String {
    let plain: Vec<&str> = path
        .split('/')
        .map(|part| match part.strip_prefix('.').and_then(|part| part.strip_suffix(".tmp")) {
            Some(scratch) => scratch.rsplit_once('.').map_or(scratch, |(name, _)| name),
            None if part.starts_with("beat-") => "beat-",
            None => part,
        })
        .collect();
    // The last two parts tell a file from its like elsewhere.
    plain[plain.len().saturating_sub(2)..].join("/")
}

impl Point {
    /// The write of a line of a trace; none if it is not the training's.
    fn of_line(line: &str) -> Option<Self> {
        let mut words = line.splitn(3, ' ');
        let (rank, call, path) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
        let (_, path) = path.split_once(&format!("stages/{STAGE}/"))?;
        Some(Self { rank, call: call.into(), path: stable(path) })
    }

    /// What the failpoint looks for: every part of the path.
    fn parts(&self) -> Vec<String> {
        let parts = self.path.split('/').filter(|part| !part.is_empty()).map(str::to_string);
        [format!("stages/{STAGE}")].into_iter().chain(parts).collect()
    }

    /// The failpoint: of all writes that look like this one, the one that is the first of this very file in `trace`.
    fn fail(&self, trace: &str, then: Value) -> String {
        let parts = self.parts();
        let like = trace.lines().filter(|line| {
            let start = format!("{} {} ", self.rank, self.call);
            line.starts_with(&start) && parts.iter().all(|part| line.contains(part))
        });
        let before = like.take_while(|line| Self::of_line(line).as_ref() != Some(self)).count();
        json!({ "call": self.call, "path": parts, "rank": self.rank, "hit": before + 1, "then": then })
            .to_string()
    }
}

/// What must not depend on what happened: weights, accuracies, and the loss of every logged step.
fn results(path: &Path) -> (Vec<u8>, Vec<u8>, BTreeMap<u64, String>) {
    let read = |file: &str| std::fs::read(path.join(file)).unwrap();
    let rows = String::from_utf8(read(&format!("stages/{STAGE}/metrics.jsonl"))).unwrap();
    // Rows of a later attempt supersede those of an earlier one.
    let rows = rows.lines().filter_map(|row| serde_json::from_str::<Value>(row).ok());
    let losses = rows.map(|row| (row["step"].as_u64().unwrap(), row["loss"].to_string())).collect();
    let model = read(&format!("stages/{STAGE}/model.safetensors"));
    (model, read("stages/evaluate/results.json"), losses)
}

fn assert_same(finished: &TempRun, path: &Path, what: &str) {
    let (expected, found) = (results(&finished.join("run")), results(path));
    assert!(expected.0 == found.0, "{what}: other weights");
    assert!(expected.1 == found.1, "{what}: other accuracies");
    assert_eq!(expected.2, found.2, "{what}: other losses");
}

fn without_training(finished: &TempRun) -> TempRun {
    copy_without(finished, |name| [STAGE, "evaluate"].contains(&name))
}

/// Starts the training of a copy with a failpoint.
fn start(path: &Path, sets: &[&str], fail: &str) -> Process {
    let mut command = training(path, sets);
    command.env("EQUIPOISE_FAIL", fail);
    Process::spawn(command)
}

fn resume(path: &Path) {
    finish(equipoise(&["resume", path.to_str().unwrap()]));
}

/// Newest checkpoint by name, 0 if there is none.
fn newest_checkpoint(path: &Path) -> u64 {
    let entries =
        std::fs::read_dir(path.join(format!("stages/{STAGE}/ckpt"))).into_iter().flatten().flatten();
    let step = |name: String| name.strip_prefix("step-")?.parse::<u64>().ok();
    entries.filter_map(|entry| step(entry.file_name().into_string().ok()?)).max().unwrap_or(0)
}

/// The last step that a row of metrics acknowledges.
fn logged_step(path: &Path) -> u64 {
    let rows =
        std::fs::read_to_string(path.join(format!("stages/{STAGE}/metrics.jsonl"))).unwrap_or_default();
    let steps = rows.lines().filter_map(|row| serde_json::from_str::<Value>(row).ok()?["step"].as_u64());
    steps.max().unwrap_or(0)
}

fn log_of(path: &Path, attempt: u32) -> String {
    std::fs::read_to_string(path.join(format!("stages/{STAGE}/logs/{attempt}/rank-0000.log")))
        .unwrap_or_default()
}

/// F2 and F6: the rank that writes is killed at every one of its writes, without a signal before.
#[test]
fn a_kill_at_any_write_of_training_changes_nothing() {
    let (finished, writes) = reference(&SETS);
    let points = points(&writes);
    assert!(points.len() > 30, "only {} kinds of writes: {points:#?}", points.len());
    // Every fourth, unless more trials are asked for: each is a training and its resumption.
    let points: Vec<&Point> = points.iter().step_by(if trials(1) > 1 { 1 } else { 4 }).collect();
    let mut lost = 0;
    for &point in &points {
        let copy = without_training(&finished);
        let (path, what) = (copy.join("run"), format!("killed at {point:?}"));
        let mut command = training(&path, &SETS);
        command.env("EQUIPOISE_FAIL", point.fail(&writes, json!({ "signal": libc::SIGKILL })));
        command.env("EQUIPOISE_FAIL_TRACE", copy.join("trace"));
        let mut process = Process::spawn(command);
        let status = process.wait(PATIENCE);
        process.wait_for_no_orphans(SURVIVORS_GONE);
        // Once the outcome says that all is done, the stage is, whatever becomes of its ranks.
        assert_ne!(status.code(), Some(75), "{what}");
        let trace = std::fs::read_to_string(copy.join("trace")).unwrap();
        let mut own = trace.lines().filter_map(Point::of_line).filter(|other| other.rank == point.rank);
        assert_eq!(own.next_back().as_ref(), Some(point), "{what}: it was not hit");
        lost = lost.max(logged_step(&path).saturating_sub(newest_checkpoint(&path)));
        resume(&path);
        assert_same(&finished, &path, &what);
    }
    // A checkpoint is written while the steps after it are made.
    assert!(lost <= 2 * EVERY, "{lost} steps were lost, checkpoints come every {EVERY}");
    figure("F2", "kinds of writes, a rank killed at each", points.len());
    figure("F2", "most steps repeated (checkpoints every 8)", lost);
    figure("F6", "most steps repeated after SIGKILL alone (checkpoints every 8)", lost);
}

/// F2: the other rank is killed while the first one is held at a write of a checkpoint.
#[test]
fn a_kill_of_the_other_rank_during_a_checkpoint_changes_nothing() {
    let (finished, writes) = reference(&SETS);
    let points = points(&writes);
    let points = points.iter().filter(|point| point.rank == 0 && point.path.contains("step-"));
    // Every third, unless more trials are asked for: what is left on the disk is the same as above.
    let stride = if trials(1) > 1 { 1 } else { 3 };
    let mut killed = 0;
    for point in points.step_by(stride) {
        let copy = without_training(&finished);
        let (path, what) = (copy.join("run"), format!("rank 1 killed at {point:?} of rank 0"));
        let mut process = start(&path, &SETS, &point.fail(&writes, json!({ "signal": libc::SIGSTOP })));
        let is_rank = |found: &&tree::Found| {
            found.command.contains(&format!("stage={STAGE}")) && !found.command.contains("mpirun")
        };
        let stopped = |process: &Process| {
            let ranks: Vec<tree::Found> = process.live().iter().filter(is_rank).cloned().collect();
            let held = ranks.iter().find(|rank| is_stopped(rank.pid))?.pid;
            ranks.into_iter().find(|rank| rank.pid != held).map(|other| (held, other.pid))
        };
        wait_until(&what, PATIENCE, || stopped(&process).is_some());
        let (_, other) = stopped(&process).unwrap();
        tree::send(other, libc::SIGKILL);
        let status = process.wait(PATIENCE);
        process.wait_for_no_orphans(SURVIVORS_GONE);
        assert!(!matches!(status.code(), Some(0 | 75)), "{what}: {status}");
        resume(&path);
        assert_same(&finished, &path, &what);
        killed += 1;
    }
    assert!(killed > 3, "{killed} trials");
    figure("F2", "writes held while the other rank is killed", killed);
}

/// Field 3 of `/proc/PID/stat`.
fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

/// Which ranks get which signal.
type Send = fn(&[i32]);

/// F5: TERM and USR2, to all ranks or to one, once or twice, in the middle of a save, and before the first step.
#[test]
fn every_stop_of_training_is_75_and_costs_nothing() {
    let (finished, _) = reference(&LONG);
    let sends: [(&str, Send); 4] = [
        ("TERM to all ranks", |ranks| ranks.iter().for_each(|&rank| tree::send(rank, libc::SIGTERM))),
        ("USR2 to all ranks", |ranks| ranks.iter().for_each(|&rank| tree::send(rank, libc::SIGUSR2))),
        ("USR2 to one rank", |ranks| tree::send(ranks[1], libc::SIGUSR2)),
        ("TERM, and again", |ranks| {
            (0..2).for_each(|_| {
                ranks.iter().for_each(|&rank| tree::send(rank, libc::SIGTERM));
                std::thread::sleep(Duration::from_millis(20));
            });
        }),
    ];
    let mut slowest = Duration::ZERO;
    for (what, send) in sends {
        let copy = without_training(&finished);
        let path = copy.join("run");
        let mut process = Process::spawn(training(&path, &LONG));
        process.wait_for_output(&format!("{STAGE}: attempt"), PATIENCE);
        std::thread::sleep(Duration::from_millis(400));
        let is_rank =
            |command: &str| command.contains(&format!("stage={STAGE}")) && !command.contains("mpirun");
        let ranks: Vec<i32> =
            process.live().iter().filter(|found| is_rank(&found.command)).map(|found| found.pid).collect();
        assert_eq!(ranks.len(), 2, "{what}: {:?}", process.live());
        let start = Instant::now();
        send(&ranks);
        slowest = slowest.max(assert_stopped(&mut process, &path, what, start));
        assert_same(&finished, &path, what);
    }
    let fail = |call: &str, path: &[&str], rank: u32, signal: i32| {
        let path = [&[STAGE], path].concat();
        json!({ "call": call, "path": path, "rank": rank, "then": { "signal": signal } }).to_string()
    };
    for (what, fail) in [
        ("TERM in the middle of a save", fail("rename", &["ckpt/step-00000100"], 0, libc::SIGTERM)),
        ("USR2 before the first step", fail("rename", &["lock/000001"], 0, libc::SIGUSR2)),
        ("TERM to rank 1 as it opens its log", fail("append", &["rank-0001.log"], 1, libc::SIGTERM)),
    ] {
        let copy = without_training(&finished);
        let path = copy.join("run");
        let mut process = start(&path, &LONG, &fail);
        assert_stopped(&mut process, &path, what, Instant::now());
        assert_same(&finished, &path, what);
    }
    figure("F5", "ways to be told to stop, in training", 7);
    figure("F5", "slowest stop, s", format!("{:.1}", slowest.as_secs_f64()));
}

/// The stop ends with 75, a commit is there, and the run goes on to its end; returns how long it took.
fn assert_stopped(process: &mut Process, path: &Path, what: &str, start: Instant) -> Duration {
    let status = process.wait(PATIENCE);
    process.wait_for_no_orphans(SURVIVORS_GONE);
    let took = start.elapsed();
    assert_eq!(status.code(), Some(75), "{what}:\n{}", process.output());
    assert!(took < Duration::from_secs(60), "{what}: {took:?}");
    resume(path);
    took
}

/// F7: the device fails at a write of a checkpoint. The run ends with 74 and says which path and what is free; the
/// checkpoint before is whole, and with the device repaired the same command goes on.
#[test]
fn a_failing_device_ends_training_with_74_and_costs_one_checkpoint_at_most() {
    let (finished, _) = reference(&SETS);
    let model = &["ckpt", "step-00000016", "model.safetensors"][..];
    let cases = [
        ("create_new", model, libc::EMFILE),
        ("write_all", model, libc::ENOSPC),
        ("sync_data", model, libc::EIO),
        ("close", model, libc::EDQUOT),
        ("rename", &["ckpt/step-00000016"], libc::EIO),
    ];
    for (call, path_parts, errno) in cases {
        let copy = without_training(&finished);
        let (path, what) = (copy.join("run"), format!("{call} fails with {errno}"));
        let parts = [&[STAGE], path_parts].concat();
        let fail = json!({ "call": call, "path": parts, "then": { "errno": errno } }).to_string();
        let mut process = start(&path, &SETS, &fail);
        let status = process.wait(PATIENCE);
        process.wait_for_no_orphans(SURVIVORS_GONE);
        let output = process.output();
        assert_eq!(status.code(), Some(74), "{what}:\n{output}");
        assert!(output.contains("step-00000016") && output.contains("are free"), "{what}:\n{output}");
        assert_eq!(newest_checkpoint(&path), EVERY, "{what}: the one before is kept");
        assert!(logged_step(&path) < 24, "{what}: trained on to the end");
        finish(training(&path, &SETS));
        assert_same(&finished, &path, &what);
    }
    figure("F7", "failing devices in a running training, each 74", cases.len());
}

/// F10: the newest checkpoint is damaged while nobody looks; both ranks fall back to the one before.
#[test]
fn ranks_fall_back_together_from_a_damaged_checkpoint() {
    let (finished, _) = reference(&SETS);
    let stopped = without_training(&finished);
    let fail =
        json!({ "call": "create_new", "path": [STAGE, "ckpt", "step-00000024"], "then": { "signal": 9 } });
    let mut process = start(&stopped.join("run"), &SETS, &fail.to_string());
    assert_ne!(process.wait(PATIENCE).code(), Some(0));
    process.wait_for_no_orphans(SURVIVORS_GONE);
    type Damage = (&'static str, fn(&mut Vec<u8>));
    let damages: [Damage; 4] = [
        ("model.safetensors", |bytes| bytes[900] ^= 1),
        ("optimizer.safetensors", |bytes| bytes.truncate(1000)),
        ("MANIFEST.json", |bytes| bytes[30] ^= 1),
        ("model.safetensors", |bytes| bytes.clear()),
    ];
    for (file, damage) in damages {
        let copy = copy_without(&stopped, |_| false);
        let path = copy.join("run");
        let ckpt = path.join(format!("stages/{STAGE}/ckpt"));
        let damaged: PathBuf = ckpt.join("step-00000016").join(file);
        let mut bytes = std::fs::read(&damaged).unwrap();
        damage(&mut bytes);
        std::fs::write(&damaged, bytes).unwrap();
        resume(&path);
        let log = log_of(&path, 2);
        assert!(ckpt.join("step-00000016.corrupt").is_dir(), "{file}: {log}");
        assert_eq!(log.matches("set aside a damaged checkpoint").count(), 1, "{file}: {log}");
        assert!(log.contains("resumed at step 8 of 24"), "{file}: {log}");
        assert_same(&finished, &path, file);
    }
    figure("F10", "damaged checkpoints under two ranks", damages.len());
}

/// F24: a loss that is no number on one rank stops all of them at that step, before any weight changes.
#[test]
fn a_nan_on_one_rank_stops_all_before_the_update() {
    let (finished, _) = reference(&SETS);
    for rank in [0, 1] {
        let copy = without_training(&finished);
        let path = copy.join("run");
        let fail = json!({ "call": "loss", "path": ["step 13,"], "rank": rank, "then": "nan" }).to_string();
        let mut process = start(&path, &SETS, &fail);
        let status = process.wait(PATIENCE);
        process.wait_for_no_orphans(SURVIVORS_GONE);
        let output = process.output();
        assert_eq!(status.code(), Some(71), "{output}");
        assert!(output.contains("step 13: the loss or the gradient is not finite"), "{output}");
        let log = path.join(format!("stages/{STAGE}/logs/1/rank-{rank:04}.log"));
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.contains(&format!("step 13, micro-batch {rank}: loss NaN over the images")), "{log}");
        assert_eq!(newest_checkpoint(&path), 8, "nothing is saved of a step that failed");
        finish(training(&path, &SETS));
        assert_same(&finished, &path, &format!("not a number on rank {rank}"));
    }
    figure("F24", "ranks with a NaN, all stopped at its step with 71", 2);
}

/// F24, where the recipe lets some steps be left out: the same ones on any number of ranks, counted over all attempts.
#[test]
fn steps_that_are_not_finite_are_left_out_as_often_as_the_recipe_allows() {
    const ONE: &str = "classifier.skip_non_finite=1";
    let nan = |step| json!({ "call": "loss", "path": [format!("step {step},")], "then": "nan" }).to_string();
    let model =
        |run: &TempRun| std::fs::read(run.join(format!("run/stages/{STAGE}/model.safetensors"))).unwrap();
    let rows = |run: &TempRun| {
        let rows = std::fs::read_to_string(run.join(format!("run/stages/{STAGE}/metrics.jsonl"))).unwrap();
        rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect::<Vec<Value>>()
    };
    let (undisturbed, _) = reference(&SETS);
    let trained: Vec<TempRun> = [1, 2]
        .map(|ranks| {
            let run = TempRun::default();
            let sets: Vec<&str> = SETS.into_iter().chain([ONE]).collect();
            let mut command = run_recipe("train", &run.join("run"), ranks, &sets);
            command.env("EQUIPOISE_FAIL", nan(13));
            finish(command);
            let rows = rows(&run);
            let skipped = |step: usize| rows[step / 2 - 1]["skipped"].as_u64();
            assert_eq!((skipped(12), skipped(14), skipped(24)), (None, Some(1), Some(1)));
            assert!(rows.iter().all(|row| row["loss"].as_f64().is_some_and(f64::is_finite)), "{rows:?}");
            run
        })
        .into();
    assert_eq!(model(&trained[0]), model(&trained[1]), "on one rank and on two");
    assert_ne!(model(&trained[0]), model(&undisturbed), "the step counts");

    // The second one, in another attempt, is one too many; what is allowed may grow.
    let run = TempRun::default();
    let path = run.join("run");
    let sets: Vec<&str> = LONG.into_iter().chain([ONE]).collect();
    let mut process = start(&path, &sets, &nan(13));
    wait_until("a checkpoint", PATIENCE, || newest_checkpoint(&path) >= 50);
    process.signal(libc::SIGTERM);
    assert_eq!(process.wait(PATIENCE).code(), Some(75), "{}", process.output());
    let mut process = start(&path, &sets, &nan(390));
    assert_eq!(process.wait(PATIENCE).code(), Some(71), "{}", process.output());
    assert!(process.output().contains("1 such steps were left out before"), "{}", process.output());
    let mut command = equipoise(&["resume", "--set", "classifier.skip_non_finite=2"]);
    command.arg(&path).env("EQUIPOISE_FAIL", nan(390));
    finish(command);
    assert_eq!(rows(&run).last().unwrap()["skipped"], 2);
    figure("F24", "steps left out where the recipe allows it, the same bits on 1 and 2 ranks", 1);
}

/// The weights of the best look at a split are kept, whatever happened and on however many ranks.
#[test]
fn the_weights_that_do_best_on_a_split_are_kept() {
    const VALIDATE: &str = r#"classifier.validate={ split = "test", every_steps = 16 }"#;
    let sets: Vec<&str> = LONG.into_iter().chain([VALIDATE]).collect();
    let read = |run: &Path, file: &str| std::fs::read(run.join(file)).unwrap();
    let kept = |run: &Path| {
        let seen = read(run, &format!("stages/{STAGE}/validation.json"));
        (seen, read(run, &format!("stages/{STAGE}/model.safetensors")))
    };
    let (whole, _) = reference(&sets);
    let expected = kept(&whole.join("run"));
    let validation: Value = serde_json::from_slice(&expected.0).unwrap();
    let seen: Vec<(u64, f64)> = serde_json::from_value(validation["seen"].clone()).unwrap();
    assert_eq!((seen.len(), seen[0].0, seen[24].0), (25, 16, 400));
    let best = seen.iter().map(|(_, accuracy)| *accuracy).fold(0.0, f64::max);
    let first = seen.iter().find(|(_, accuracy)| *accuracy == best).unwrap();
    assert_eq!((validation["step"].as_u64(), validation["accuracy"].as_f64()), (Some(first.0), Some(best)));
    assert!(best > seen[0].1, "training is of use: {seen:?}");
    // The split is the one that the arms are evaluated on.
    let evaluated: Value =
        serde_json::from_slice(&read(&whole.join("run"), "stages/evaluate/results.json")).unwrap();
    assert_eq!(evaluated["runs"][0]["scores"]["test"]["all"], validation["accuracy"]);

    let run = TempRun::default();
    let path = run.join("run");
    let mut process = Process::spawn(training(&path, &sets));
    wait_until("a checkpoint", PATIENCE, || newest_checkpoint(&path) >= 50);
    process.signal(libc::SIGTERM);
    assert_eq!(process.wait(PATIENCE).code(), Some(75), "{}", process.output());
    let mut process = Process::spawn(run_recipe("train", &path, 1, &sets));
    wait_until("another checkpoint", PATIENCE, || newest_checkpoint(&path) >= 200);
    let is_rank = |args: &str| args.contains(&format!("stage={STAGE}")) && !args.contains("mpirun");
    let rank = process.live().into_iter().find(|found| is_rank(&found.command)).unwrap();
    tree::send(rank.pid, libc::SIGKILL);
    assert!(!process.wait(PATIENCE).success());
    finish(training(&path, &sets));
    let found = kept(&path);
    assert!(found.0 == expected.0, "{}", String::from_utf8_lossy(&found.0));
    assert!(found.1 == expected.1, "other weights");
}
