//! F31: run directories on a file system without locks.

use crate::support::{assert_same, equipoise, finish, results, run};
use equipoise_testkit::{TempRun, figure, no_locks};
use serde_json::Value;
use std::process::Command;

#[test]
fn a_file_system_without_locks_is_no_obstacle_and_doctor_says_so() {
    let folder = TempRun::default();
    let runs = folder.join("runs");
    std::fs::create_dir(&runs).unwrap();
    let mut control = Command::new("flock");
    control.arg(folder.write("runs/lock", "")).arg("true");
    no_locks::below(&runs, &mut control);
    assert!(!control.status().unwrap().success(), "locks must fail for this test to mean anything");
    std::fs::remove_file(runs.join("lock")).unwrap();

    let mut command = run(&runs.join("run"), 2, &[]);
    no_locks::below(&runs, &mut command);
    finish(command);
    let mut command = equipoise(&["shards", "verify", "--deep", runs.join("run").to_str().unwrap()]);
    no_locks::below(&runs, &mut command);
    finish(command);
    finish(run(&folder.join("plain"), 2, &[]));
    let without = results(&runs.join("run"));
    assert_same(&results(&folder.join("plain")), &without, "without locks");
    figure("F31", "files equal to those of a run with locks", without.len());

    let mut command = equipoise(&["doctor", "--node", "--output=json", "--root"]);
    // No Slurm here, even where its commands are installed: two ranks under mpirun.
    command.arg(&runs).env("SLURM_CONF", folder.join("none")).env_remove("SLURM_JOB_ID");
    no_locks::below(&runs, &mut command);
    let output = command.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |check: &str| {
        let finding = found.iter().find(|finding| finding["check"] == check);
        finding.unwrap_or_else(|| panic!("no {check}: {said}"))["found"].as_str().unwrap().to_string()
    };
    assert!(text("MPI hello").contains("2 ranks on"), "{said}");
    assert!(text("HDF5").contains("reads back"), "{said}");
    let locks = text("file locks");
    assert!(locks.contains("No locks available") && locks.contains("HDF5_USE_FILE_LOCKING=FALSE"), "{locks}");
    assert_eq!(std::fs::read_dir(&runs).unwrap().count(), 1, "doctor leaves nothing behind");
}
