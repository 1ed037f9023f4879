//! The cluster itself: boots in seconds, loses nodes, preempts, and leaves nothing behind.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs)]

use equipoise_testkit::slurm::{Cluster, Options};
use equipoise_testkit::{tree, wait_until};
use std::path::{Path, PathBuf};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(60);

fn script(cluster: &Cluster, name: &str, text: &str) -> PathBuf {
    let path = cluster.shared().join(name);
    std::fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
    path
}

fn read(cluster: &Cluster, name: &str) -> String {
    std::fs::read_to_string(cluster.shared().join(name)).unwrap_or_default()
}

#[test]
fn two_clusters_beside_each_other_preempt_lose_nodes_and_vanish() {
    let mut cluster = Cluster::boot(Options { grace: 2, ..Options::default() });
    let other = Cluster::boot(Options::default());
    let text = "srun bash -c 'echo $SLURM_NODEID $(hostname) $(id -un)'";
    let job = cluster.submit(&["-N2", "--output=steps.txt"], &script(&cluster, "steps.sh", text));
    cluster.wait_for(job, "completed", BOUND, |job| job.state == "COMPLETED");
    let mut lines: Vec<String> = read(&cluster, "steps.txt").lines().map(str::to_string).collect();
    lines.sort();
    assert_eq!(lines, ["0 n1 student", "1 n2 student"]);

    // Preempted with grace, requeued, and started again as the same job.
    // Deaf to TERM: a job that ends within the grace time, in whatever way, is not requeued. Before the long sleep a
    // short one: srun ends a job, instead of leaving it to Slurm, when a node is lost before it has heard of its tasks.
    let text = r#"echo start ${SLURM_RESTART_COUNT:-0} >> starts.txt
srun bash -c "trap '' TERM; sleep 3; exec sleep 600""#;
    let job = cluster.submit(&["-N2", "--output=/dev/null"], &script(&cluster, "long.sh", text));
    let stepping = |cluster: &Cluster| {
        cluster.matching("sleep 600").iter().filter(|found| found.command == "sleep 600").count() == 2
    };
    wait_until("the first start", BOUND, || stepping(&cluster));
    let urgent = cluster.preempt(2, 1);
    cluster.wait_for(urgent, "the urgent job is done", BOUND, |job| job.is_over());
    cluster.start_now(job);
    wait_until("the second start", BOUND, || read(&cluster, "starts.txt") == "start 0\nstart 1\n");

    // A node is lost with everything on it.
    wait_until("the second step", BOUND, || stepping(&cluster));
    cluster.kill_node(2);
    assert!(cluster.processes(2).is_empty());
    cluster.wait_for(job, "requeued", BOUND, |job| job.restarts == 2);
    cluster.cancel(job);
    cluster.boot_node(2);
    cluster.wait_until_idle();

    // Nothing of either remains.
    let base = |cluster: &Cluster| cluster.shared().parent().unwrap().display().to_string();
    let bases = [base(&cluster), base(&other)];
    let used = |base: &str| tree::all().into_iter().any(|found| found.command.contains(base));
    assert!(bases.iter().all(|base| used(base)));
    drop((cluster, other));
    assert!(bases.iter().all(|base| !used(base) && !Path::new(base).exists()));
}
