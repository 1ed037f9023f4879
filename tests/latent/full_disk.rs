//! The disk of a run fills up while images are made.

use crate::run;
use crate::support::{PATIENCE, assert_same, equipoise, finish, results};
use equipoise_testkit::{Process, TempRun};
use std::process::Command;

const SETS: [&str; 2] = ["sets.published.plan.n=12", "sets.published.sampler.steps=16"];

/// Runs what follows on a small file system of its own at $1, fills it once the second shard is there, makes room again,
/// resumes, and copies the run to $2.
const SCRIPT: &str = r#"
disk=$1 kept=$2 equipoise=$3
shift 3
mount -t tmpfs -o size=64m none "$disk" || exit 99
"$@" &
shards() { find "$disk/run/sets/published.k0" -name '*.h5' -not -path '*/.*' 2>/dev/null | wc -l; }
until [ "$(shards)" -ge 2 ]; do kill -0 $! || exit 98; sleep 0.01; done
cat /dev/zero > "$disk/filler" 2>/dev/null
wait $!
echo "full: $? after $(shards) shards"
rm "$disk/filler"
"$equipoise" resume "$disk/run" || exit
echo "resumed: $(shards) shards"
cp -a "$disk/run" "$kept"
"#;

#[test]
fn a_full_disk_ends_with_74_and_resume_completes() {
    let temp = TempRun::default();
    finish(run(&temp.join("reference"), 2, &SETS));
    let disk = temp.join("disk");
    std::fs::create_dir(&disk).unwrap();
    let front_end = run(&disk.join("run"), 2, &SETS);
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "bash", "-c", SCRIPT, "full-disk"]);
    command.arg(&disk).arg(temp.join("kept")).arg(env!("CARGO_BIN_EXE_equipoise"));
    command.arg(front_end.get_program()).args(front_end.get_args());
    for (key, value) in front_end.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let mut process = Process::spawn(command);
    let status = process.wait(PATIENCE);
    let output = process.output();
    assert!(status.success(), "{status}: {output}");
    assert!(output.contains("full: 74 after"), "{output}");
    assert!(output.contains("free some space"), "{output}");
    assert_same(&results(&temp.join("reference")), &results(&temp.join("kept")), "after a full disk");
    let kept = temp.join("kept");
    finish(equipoise(&["shards", "verify", "--deep", kept.to_str().unwrap()]));
}
