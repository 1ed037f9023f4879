//! slurm.conf of a test cluster: a preemptible site with all timers short.

use super::Options;
use std::fmt::Write as _;
use std::path::Path;

/// Seconds without an answer after which a node is lost, unless it is set otherwise.
pub const SLURMD_TIMEOUT: u32 = 10;

/// Address of a host: 1 is the controller, nodes follow from 11.
pub(super) fn address(node: Option<usize>) -> String {
    format!("10.77.0.{}", node.map_or(1, |number| 10 + number))
}

/// Name of a node, counted from 1.
pub(super) fn node_name(number: usize) -> String {
    format!("n{number}")
}

/// /etc/hosts of every host.
pub(super) fn hosts(nodes: usize) -> String {
    let mut text = format!("127.0.0.1 localhost\n{} ctl\n", address(None));
    for number in 1..=nodes {
        let _ = writeln!(text, "{} {}", address(Some(number)), node_name(number));
    }
    text
}

/// No cgroups: the machine may have either version, and jobs are found through /proc.
pub(super) const CGROUP_CONF: &str = "CgroupPlugin=autodetect\nCgroupAutomount=no\nIgnoreSystemd=yes\nConstrainCores=no\nConstrainRAMSpace=no\n";

/// slurm.conf. Partitions: `low` (preempted by `high`, requeued, with grace), `low0` (the same without grace), `cancel`
/// (preempted jobs are not requeued), `high`.
pub(super) fn slurm_conf(base: &Path, options: &Options) -> String {
    let Options { nodes, cpus, grace, requeue_delay, .. } = options;
    let (base, controller) = (base.display(), address(None));
    let mut text = format!(
        "ClusterName=test
SlurmctldHost=ctl({controller})
SlurmUser=slurm
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge/socket,cred_expire={requeue_delay}
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd.%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
LogTimeFormat=iso8601_ms
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
LaunchParameters=use_interactive_step
SlurmdTimeout={SLURMD_TIMEOUT}
SlurmctldTimeout=30
MessageTimeout=10
TCPTimeout=2
BatchStartTimeout=20
KillWait=5
UnkillableStepTimeout=120
OverTimeLimit=0
MinJobAge=3600
InactiveLimit=0
CompleteWait=0
JobRequeue=1
TreeWidth=50
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0,preempt_youngest_first
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
MaxArraySize=1001
PriorityType=priority/basic
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"
    );
    for number in 1..=*nodes {
        let (name, address) = (node_name(number), address(Some(number)));
        let _ =
            writeln!(text, "NodeName={name} NodeAddr={address} CPUs={cpus} RealMemory=8000 State=UNKNOWN");
    }
    let common = "Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP";
    let _ = writeln!(
        text,
        "PartitionName=low {common} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}"
    );
    let _ = writeln!(text, "PartitionName=low0 {common} PriorityTier=1 PreemptMode=REQUEUE GraceTime=0");
    let _ =
        writeln!(text, "PartitionName=cancel {common} PriorityTier=1 PreemptMode=CANCEL GraceTime={grace}");
    let _ = writeln!(text, "PartitionName=high {common} PriorityTier=10 PreemptMode=OFF");
    text
}
