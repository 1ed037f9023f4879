//! A real Slurm cluster on this machine: slurmctld, several slurmd, munge, no systemd.
//!
//! Each host is a bash that is process 1 of namespaces of its own (processes, network, mounts, host name), joined to the
//! others by a bridge inside the controller's network. So two clusters never meet, whatever their names and ports; a
//! node is lost by killing its process 1, which takes everything on it along, as a power cut does; and nothing is left
//! behind, even if the test process is killed: the kernel ends process 1 with whoever started it, and with it the
//! processes, mounts and interfaces of that host.
//!
//! | file | owns |
//! |---|---|
//! | `needs` | what has to be installed, and why it cannot run otherwise |
//! | `conf` | slurm.conf: partitions, timers |
//! | `host` | one host: boot, enter, kill, cut off |
//! | `jobs` | what a user and an administrator do: submit, look, preempt, requeue, cancel |

mod conf;
mod host;
mod jobs;
mod needs;

pub use conf::SLURMD_TIMEOUT;
pub use jobs::{Job, JobState};
pub use needs::missing;

use crate::tree;
use host::{Host, Place};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;

/// User and group id of the account that submits; it exists inside the hosts only.
const USER: u32 = 2000;
/// Its name.
const USER_NAME: &str = "student";
/// Nodes that do not answer within this time on a loaded machine have not come up.
const BOOT: Duration = Duration::from_secs(60);

/// What the cluster is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of nodes, named n1, n2, ...
    pub nodes: usize,
    /// CPUs that each node says it has.
    pub cpus: usize,
    /// Seconds between TERM and the end of a preempted job of partition `low`; `low0` has none.
    pub grace: u32,
    /// Seconds that Slurm lets a requeued job wait (it is the lifetime of credentials; sites have 121).
    pub requeue_delay: u32,
    /// Folders that jobs use, besides the repository and the shared folder: others may be hidden from the nodes.
    pub visible: Vec<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 2, cpus: 4, grace: 10, requeue_delay: 10, visible: vec![] }
    }
}

/// A running cluster. Dropping it ends everything on it and removes its folder, which is kept if the test panics.
///
/// The hosts die with the *thread* that called [`Cluster::boot`], so keep the cluster in that thread.
#[derive(Debug)]
pub struct Cluster {
    /// Every host, dropped before the folder.
    controller: Host,
    nodes: Vec<Option<Host>>,
    options: Options,
    folder: Option<TempDir>,
}

impl Cluster {
    /// Boots a cluster and waits until all its nodes are idle.
    ///
    /// # Panics
    /// With what is missing on this machine, or with the daemons' logs.
    pub fn boot(options: Options) -> Self {
        if let Some(reason) = missing() {
            panic!("no Slurm cluster can be booted here: {reason}");
        }
        let made = tempfile::Builder::new().prefix("eqp-slurm-").permissions(mode(0o755)).tempdir();
        let folder = made.unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        lay_out(folder.path(), &options)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.path().display()));
        let mut place = Place { base: folder.path().to_path_buf(), visible: options.visible.clone() };
        place.visible.push(repository());
        place.visible.extend(build_folder());
        let controller = Host::boot_controller(&place);
        let mut cluster = Self { controller, nodes: vec![], options, folder: Some(folder) };
        cluster.nodes = (1..=cluster.options.nodes).map(|_| None).collect();
        (1..=cluster.options.nodes).for_each(|number| cluster.boot_node(number));
        cluster.wait_until_idle();
        cluster
    }

    fn base(&self) -> &Path {
        self.folder.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// The parallel file system: seen by all hosts, and the user's.
    pub fn shared(&self) -> PathBuf {
        self.base().join("shared")
    }

    /// Where slurmd of a node keeps what it needs while jobs run, such as the socket of PMIx.
    pub fn spool(&self, number: usize) -> PathBuf {
        self.base().join("spool").join(conf::node_name(number))
    }

    /// Names of the nodes.
    pub fn node_names(&self) -> Vec<String> {
        (1..=self.options.nodes).map(conf::node_name).collect()
    }

    /// A command on the login node (the controller), as the unprivileged user, in the shared folder, with a clean
    /// environment.
    pub fn as_user(&self, program: impl AsRef<Path>) -> Command {
        let credentials = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into()];
        let mut command = self.controller.command("setpriv");
        command.args(credentials).arg("env").arg("-C").arg(self.shared()).arg(program.as_ref());
        command.env("HOME", self.base().join("home")).env("USER", USER_NAME).env("LOGNAME", USER_NAME);
        command
    }

    /// As [`Cluster::as_user`], as the administrator.
    pub fn as_root(&self, program: impl AsRef<Path>) -> Command {
        self.controller.command(program)
    }

    /// Gives the user what a test has put into the shared folder.
    ///
    /// # Panics
    /// If the owner cannot be changed.
    pub fn give_to_user(&self, path: &Path) {
        let status = Command::new("chown").arg("-R").arg(format!("{USER}:{USER}")).arg(path).status();
        assert!(status.is_ok_and(|status| status.success()), "chown {}", path.display());
    }

    /// Loses a node: everything on it ends at once, and its disk is empty when it comes back.
    ///
    /// # Panics
    /// If it was lost before.
    pub fn kill_node(&mut self, number: usize) {
        let node = self.nodes[number - 1].take();
        drop(node.unwrap_or_else(|| panic!("node {number} is dead already")));
        // The kernel takes its time to remove the cable of a network that is no more.
        self.controller.unplug(number);
        // Its own disk is lost too: an orphaned PMIx socket in the spool would keep the same step from starting there.
        let name = conf::node_name(number);
        let _ = std::fs::remove_dir_all(host::private_tmp(self.base(), &name));
        let _ = std::fs::remove_dir_all(self.spool(number));
    }

    /// Boots a lost node again.
    pub fn boot_node(&mut self, number: usize) {
        assert!(self.nodes[number - 1].is_none(), "node {number} is running");
        let mut place = Place { base: self.base().to_path_buf(), visible: self.options.visible.clone() };
        place.visible.push(repository());
        place.visible.extend(build_folder());
        self.nodes[number - 1] = Some(Host::boot_node(&place, number, &self.controller));
    }

    /// Cuts a node off the network: it goes on, and nobody hears of it.
    pub fn cut_link(&self, number: usize) {
        self.controller.set_link(number, "down");
    }

    /// Joins it again.
    pub fn heal_link(&self, number: usize) {
        self.controller.set_link(number, "up");
    }

    /// Live processes on a node, by pid as this process sees them.
    pub fn processes(&self, number: usize) -> Vec<tree::Found> {
        self.nodes[number - 1].as_ref().map_or_else(Vec::new, Host::live)
    }

    /// Live processes of the user on all nodes: batch scripts and what they started, none of Slurm's own.
    pub fn user_processes(&self) -> Vec<tree::Found> {
        use std::os::unix::fs::MetadataExt as _;
        let owner =
            |found: &tree::Found| Some(Path::new(&format!("/proc/{}", found.pid)).metadata().ok()?.uid());
        let users: Vec<tree::Found> =
            tree::all().into_iter().filter(|found| owner(found) == Some(USER)).collect();
        self.nodes.iter().flatten().flat_map(|node| node.of_host(&users)).collect()
    }

    /// Live processes on all nodes whose command line holds `text`.
    pub fn matching(&self, text: &str) -> Vec<tree::Found> {
        let all = (1..=self.options.nodes).flat_map(|number| self.processes(number));
        all.filter(|found| found.command.contains(text)).collect()
    }

    /// Waits until every node answers and runs nothing.
    ///
    /// # Panics
    /// With the daemons' logs if they do not within a minute.
    pub fn wait_until_idle(&self) {
        let idle = || {
            let output = self.as_root("sinfo").args(["-h", "-N", "-p", "high", "-o", "%n %T"]).output();
            let text = output.map(|output| stdout(&output)).unwrap_or_default();
            text.lines().count() == self.options.nodes && text.lines().all(|line| line.ends_with(" idle"))
        };
        let start = std::time::Instant::now();
        while !idle() {
            if start.elapsed() > BOOT {
                panic!("the nodes are not idle after {BOOT:?}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Leaves the folder where it is when the cluster is gone; for people to look at.
    pub fn keep(&mut self) -> PathBuf {
        if let Some(folder) = &mut self.folder {
            folder.disable_cleanup(true);
        }
        self.base().to_path_buf()
    }

    /// The last lines of every daemon's log.
    pub fn logs(&self) -> String {
        let folder = self.base().join("log");
        let files = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> = files.collect();
        files.sort();
        let tail = |path: &PathBuf| {
            let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {}\n{}\n", path.display(), lines[lines.len().saturating_sub(25)..].join("\n"))
        };
        files.iter().map(tail).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        self.controller.kill();
        if let Some(folder) = self.folder.take().filter(|_| std::thread::panicking()) {
            eprintln!("kept for inspection: {}", folder.keep().display());
        }
    }
}

/// The folders, accounts and secrets of a cluster.
#[allow(clippy::disallowed_methods)]
fn lay_out(base: &Path, options: &Options) -> std::io::Result<()> {
    let write = |name: &str, text: &str| std::fs::write(base.join(name), text);
    for folder in ["etc", "log", "state", "run", "spool", "munge", "home", "shared", "private"] {
        std::fs::create_dir(base.join(folder))?;
    }
    let account = |database: &str, name: &str| account_ids(&format!("/etc/{database}"), name);
    let (slurm, munge) = (account("passwd", "slurm")?, account("passwd", "munge")?);
    for (folder, (user, group)) in [
        ("state", slurm),
        ("run", slurm),
        ("log", slurm),
        ("munge", munge),
        ("home", (USER, USER)),
        ("shared", (USER, USER)),
    ] {
        chown(base.join(folder), Some(user), Some(group))?;
    }
    write("etc/slurm.conf", &conf::slurm_conf(base, options))?;
    write("etc/cgroup.conf", conf::CGROUP_CONF)?;
    write("etc/hosts", &conf::hosts(options.nodes))?;
    let home = base.join("home");
    let user = format!("{USER_NAME}:x:{USER}:{USER}::{}:/bin/bash\n", home.display());
    write("etc/passwd", &(std::fs::read_to_string("/etc/passwd")? + &user))?;
    write("etc/group", &(std::fs::read_to_string("/etc/group")? + &format!("{USER_NAME}:x:{USER}:\n")))?;
    let mut key = [0u8; 1024];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut key)?;
    std::fs::write(base.join("munge/key"), key)?;
    std::fs::set_permissions(base.join("munge/key"), mode(0o400))?;
    chown(base.join("munge/key"), Some(munge.0), Some(munge.1))
}

/// User and group id of an account of this machine.
fn account_ids(database: &str, name: &str) -> std::io::Result<(u32, u32)> {
    let text = std::fs::read_to_string(database)?;
    let fields =
        text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name);
    let id = |at: usize| fields.as_ref()?.get(at)?.parse().ok();
    let missing = || std::io::Error::other(format!("{database}: no account {name}"));
    Ok((id(2).ok_or_else(missing)?, id(3).ok_or_else(missing)?))
}

fn mode(bits: u32) -> std::fs::Permissions {
    std::fs::Permissions::from_mode(bits)
}

/// The repository, whose binaries and data jobs use.
fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Where the binaries of this build are, which may not be in the repository: `target/debug` for `target/debug/deps/test`.
fn build_folder() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.parent()?.to_path_buf())
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
