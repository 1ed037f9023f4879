//! Every public function of the crate that writes, as a case for the fault tests.

#![allow(dead_code)] // Each test file uses its part.

use equipoise_base::clock::FakeClock;
use equipoise_base::{Identity, Result};
use equipoise_rundir::commit::{commit_bytes, create_dirs};
use equipoise_rundir::fault::FaultFs;
use equipoise_rundir::identity::IdentityRecord;
use equipoise_rundir::journal::{self, Journal};
use equipoise_rundir::lease::{Lease, LeaseRequest, recorded_owner};
use equipoise_rundir::stage::{Outcome, State, Status};
use equipoise_rundir::vfs::Vfs;
use equipoise_rundir::{Checkpoints, Process, RunDir, Snapshot, StageDir, StageKey};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A function that writes, the state it starts from, and what identifies a state.
pub struct Case {
    pub name: &'static str,
    /// Makes the state before; returns what is to be tested.
    pub setup: fn(&FaultFs) -> Act,
    /// Whether what `setup` did is on disk; if not, it was done by a process that was killed.
    pub settled: bool,
    pub signature: fn(&FaultFs) -> String,
    /// Syncs that this case cannot prove necessary, with the case that does.
    pub proved_elsewhere: &'static [(usize, &'static str)],
}

/// What is to be tested; may be done again after it failed.
pub type Act = Box<dyn Fn(&FaultFs) -> Result<()>>;

impl Case {
    /// A disk in the state before, and what is to be done on it.
    pub fn start(&self) -> (FaultFs, Act) {
        let fs = FaultFs::new();
        let act = (self.setup)(&fs);
        if self.settled {
            fs.settle();
        }
        fs.ignore_sync(usize::MAX);
        (fs, act)
    }
}

pub fn shared(fs: &FaultFs) -> Arc<dyn Vfs> {
    Arc::new(fs.clone())
}

pub fn stage() -> StageDir {
    RunDir::new("/run").stage(&StageKey::new("train").unwrap())
}

pub fn checkpoints(fs: &FaultFs) -> Checkpoints {
    Checkpoints::new(shared(fs), "/run/ckpt", None)
}

pub fn snapshot(step: u64, fill: u8) -> Snapshot {
    let files = [("model", 40), ("optimizer", 90), ("averages", 7)];
    let files = files.map(|(name, len)| (name.to_string(), vec![fill; len])).into();
    Snapshot { step, world: 2, identity: Identity::of("run"), files, user: json!({"seen": 0.1}) }
}

/// A process on another machine, so that only heartbeats tell.
pub fn elsewhere(host: &str) -> Process {
    Process { host: host.into(), boot: "b".into(), namespace: "n".into(), pid: 7, start: 1 }
}

pub fn acquire(fs: &FaultFs, job: &str) -> Result<Lease> {
    let clock = FakeClock::default();
    let request = LeaseRequest {
        job: Some(job.into()),
        process: elsewhere(job),
        background: false,
        ..LeaseRequest::new("/run/lock", &clock)
    };
    Lease::acquire(shared(fs), &request)
}

fn run_dir(fs: &FaultFs) {
    fs.create_dir(Path::new("/run")).unwrap();
}

/// A checkpoint directory that its maker was killed over, before it was synced.
fn unsynced_ckpt_dir(fs: &FaultFs) {
    run_dir(fs);
    fs.sync_dir(Path::new("/")).unwrap();
    fs.create_dir(Path::new("/run/ckpt")).unwrap();
}

pub fn damage(fs: &FaultFs, path: &str) {
    let path = Path::new(path);
    fs.remove_file(path).unwrap();
    fs.create_new(path).unwrap().write_all(b"damaged").unwrap();
}

/// All checkpoints with their validity, and everything set aside.
fn checkpoint_names(fs: &FaultFs) -> String {
    let valid: Vec<String> = (0..10).filter_map(|step| checkpoint(fs, step)).collect();
    let entries = fs.list_if_exists(Path::new("/run/ckpt")).unwrap();
    let aside: Vec<&str> =
        entries.iter().map(|entry| entry.name.as_str()).filter(|name| name.contains("corrupt")).collect();
    format!("{valid:?} {aside:?}")
}

fn checkpoint(fs: &FaultFs, step: u64) -> Option<String> {
    let checkpoints = checkpoints(fs);
    fs.exists(&checkpoints.path(step)).unwrap().then(|| match checkpoints.verify(step).unwrap() {
        Ok(mut checkpoint) => {
            let model = checkpoint.take("model").unwrap();
            format!("{step}={}", model[0])
        }
        Err(_) => format!("{step}=invalid"),
    })
}

/// The valid checkpoints, and how many damaged ones are still there under whatever name.
fn valid_and_damaged(fs: &FaultFs) -> String {
    let names = checkpoint_names(fs);
    let damaged = names.matches("invalid").count() + names.matches("corrupt").count();
    let valid: Vec<String> =
        (0..10).filter_map(|step| checkpoint(fs, step)).filter(|text| !text.contains("invalid")).collect();
    format!("{valid:?} {damaged}")
}

fn read_text(fs: &FaultFs, path: &str) -> String {
    fs.read(Path::new(path))
        .map_or_else(|_| "missing".into(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

const JOURNAL: &str = "/run/journal.jsonl";

/// The records, after which the journal must still take and return more.
fn journal_records(fs: &FaultFs) -> String {
    let found = journal::read::<Value>(fs, Path::new(JOURNAL)).unwrap().records;
    if fs.exists(Path::new("/run")).unwrap() {
        let mut journal = Journal::open(shared(fs), Path::new(JOURNAL), None).unwrap();
        journal.append(&json!("later")).unwrap();
        let later = journal::read::<Value>(fs, Path::new(JOURNAL)).unwrap().records;
        assert_eq!((&later[..found.len()], later.len()), (&found[..], found.len() + 1));
    }
    format!("{found:?}")
}

fn append(fs: &FaultFs, record: Value) -> Result<()> {
    Journal::open(shared(fs), Path::new(JOURNAL), None)?.append(&record)
}

/// Who owns the lock; it must always be possible to find out.
fn lock_owner(fs: &FaultFs) -> String {
    match recorded_owner(fs, Path::new("/run/lock")) {
        Ok(Some(owner)) => format!("{:?} {}", owner.job, owner.handed_over),
        Ok(None) => "free".to_string(),
        Err(error) => error.to_string(),
    }
}

fn status() -> Status {
    Status {
        stage: "train".into(),
        state: State::Running,
        unit: "steps".into(),
        done: 1,
        total: 9,
        rate: Some(0.5),
        attempt: 1,
        ranks: 2,
        host: "n1".into(),
        pid: 7,
        wall: 1.0,
    }
}

fn make_stage_dir(fs: &FaultFs) {
    create_dirs(fs, stage().root()).unwrap();
}

pub fn identity() -> IdentityRecord {
    IdentityRecord::of(BTreeMap::from([("lr".into(), "0.1".into())]))
}

/// Every file with its content.
pub fn tree(vfs: &dyn Vfs, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in vfs.list_if_exists(dir).unwrap() {
        let path = dir.join(&entry.name);
        if entry.is_dir {
            files.extend(tree(vfs, &path));
        } else {
            files.insert(path.clone(), vfs.read(&path).unwrap());
        }
    }
    files
}

/// Drops a lease as a kill does: without releasing it.
pub fn kill(lease: Lease) {
    std::mem::forget(lease);
}

pub fn cases() -> Vec<Case> {
    let mut cases = file_cases();
    cases.extend(journal_cases());
    cases.extend(checkpoint_cases());
    cases.extend(lease_cases());
    cases
}

fn file_cases() -> Vec<Case> {
    vec![
        Case {
            name: "commit a new file",
            setup: |_| Box::new(|fs| commit_bytes(fs, Path::new("/a"), b"new content", None)),
            settled: true,
            signature: |fs| read_text(fs, "/a"),
            proved_elsewhere: &[],
        },
        Case {
            name: "commit over a file",
            setup: |fs| {
                commit_bytes(fs, Path::new("/a"), b"old", None).unwrap();
                Box::new(|fs| commit_bytes(fs, Path::new("/a"), b"new content", None))
            },
            settled: true,
            signature: |fs| read_text(fs, "/a"),
            proved_elsewhere: &[],
        },
        Case {
            name: "create directories below one that was never synced",
            setup: |fs| {
                run_dir(fs);
                Box::new(|fs| create_dirs(fs, Path::new("/run/b/c")))
            },
            settled: false,
            signature: |fs| {
                // Parents without the last directory are as good as nothing.
                fs.exists(Path::new("/run/b/c")).unwrap().to_string()
            },
            proved_elsewhere: &[],
        },
        Case {
            name: "write status.json",
            setup: |fs| {
                make_stage_dir(fs);
                Box::new(|fs| status().write(fs, &stage(), None))
            },
            settled: true,
            signature: |fs| format!("{:?}", Status::read(fs, &stage())),
            proved_elsewhere: &[],
        },
        Case {
            name: "write outcome.json",
            setup: |fs| {
                make_stage_dir(fs);
                Box::new(|fs| {
                    let code = equipoise_base::ExitCode::Requeue;
                    Outcome::new(code, 0, 1, "n1", 1.0).write(fs, &stage(), None)
                })
            },
            settled: true,
            signature: |fs| format!("{:?}", Outcome::read(fs, &stage())),
            proved_elsewhere: &[],
        },
        Case {
            name: "record the identity",
            setup: |fs| {
                make_stage_dir(fs);
                Box::new(|fs| identity().require(fs, &stage().identity(), None))
            },
            settled: true,
            signature: |fs| read_text(fs, "/run/stages/train/identity.json"),
            proved_elsewhere: &[],
        },
        Case {
            name: "find an identity that was recorded but never synced",
            setup: |fs| {
                make_stage_dir(fs);
                fs.settle();
                // A commit syncs the file, then its name: the last sync is the one that failed or never came.
                fs.ignore_sync(fs.syncs() + 1);
                identity().require(fs, &stage().identity(), None).unwrap();
                Box::new(|fs| identity().require(fs, &stage().identity(), None))
            },
            settled: false,
            signature: |fs| read_text(fs, "/run/stages/train/identity.json"),
            proved_elsewhere: &[],
        },
    ]
}

fn journal_cases() -> Vec<Case> {
    vec![
        Case {
            name: "append to a new journal",
            setup: |fs| {
                run_dir(fs);
                Box::new(|fs| append(fs, json!({"n": 1})))
            },
            settled: true,
            signature: journal_records,
            proved_elsewhere: &[],
        },
        Case {
            name: "append after a torn tail",
            setup: |fs| {
                run_dir(fs);
                fs.create_new(Path::new(JOURNAL)).unwrap().write_all(b"{\"n\":0}\n{\"n\"").unwrap();
                Box::new(|fs| append(fs, json!({"n": 1})))
            },
            settled: true,
            signature: journal_records,
            proved_elsewhere: &[
                (0, "open a journal whose last record was never synced"),
                (1, "append to a new journal"),
            ],
        },
        Case {
            name: "open a journal whose last record was never synced",
            setup: |fs| {
                run_dir(fs);
                fs.sync_dir(Path::new("/")).unwrap();
                fs.create_new(Path::new(JOURNAL)).unwrap().write_all(b"{\"n\":0}\n").unwrap();
                Box::new(|fs| Journal::open(shared(fs), Path::new(JOURNAL), None).map(|_| ()))
            },
            // Reading is what makes the record matter, so only the state after the opening counts.
            settled: false,
            signature: journal_records,
            proved_elsewhere: &[],
        },
    ]
}

fn checkpoint_cases() -> Vec<Case> {
    vec![
        Case {
            name: "save the first checkpoint",
            setup: |fs| {
                unsynced_ckpt_dir(fs);
                Box::new(|fs| checkpoints(fs).save(&snapshot(1, 1)).map(|_| ()))
            },
            settled: false,
            signature: checkpoint_names,
            proved_elsewhere: &[],
        },
        Case {
            name: "save over a damaged checkpoint of the same step",
            setup: |fs| {
                checkpoints(fs).save(&snapshot(1, 1)).unwrap();
                checkpoints(fs).save(&snapshot(2, 2)).unwrap();
                damage(fs, "/run/ckpt/step-00000002/model");
                Box::new(|fs| checkpoints(fs).save(&snapshot(2, 2)).map(|_| ()))
            },
            settled: true,
            signature: valid_and_damaged,
            proved_elsewhere: &[(0, "save the first checkpoint")],
        },
        Case {
            name: "save again what was saved but never synced",
            setup: |fs| {
                unsynced_ckpt_dir(fs);
                // The last sync of the save is the one that its process did not live to see.
                let first = fs.fork();
                checkpoints(&first).save(&snapshot(1, 1)).unwrap();
                fs.ignore_sync(fs.syncs() + first.syncs() - 1);
                checkpoints(fs).save(&snapshot(1, 1)).unwrap();
                Box::new(|fs| checkpoints(fs).save(&snapshot(1, 1)).map(|_| ()))
            },
            settled: false,
            signature: |fs| checkpoint_names(fs).replace("[]", "").replace("[\"1=1\"]", "one"),
            proved_elsewhere: &[
                (0, "save the first checkpoint"),
                (1, "save the first checkpoint"),
                (2, "save the first checkpoint"),
                (3, "save the first checkpoint"),
                (4, "save the first checkpoint"),
                (5, "save the first checkpoint"),
            ],
        },
        Case {
            name: "remove old checkpoints",
            setup: |fs| {
                (1..=3).for_each(|step| drop(checkpoints(fs).save(&snapshot(step, step as u8)).unwrap()));
                Box::new(|fs| checkpoints(fs).keep_last(2))
            },
            settled: true,
            signature: checkpoint_names,
            proved_elsewhere: &[],
        },
        Case {
            name: "set a damaged checkpoint aside",
            setup: |fs| {
                (1..=2).for_each(|step| drop(checkpoints(fs).save(&snapshot(step, step as u8)).unwrap()));
                damage(fs, "/run/ckpt/step-00000002/optimizer");
                Box::new(|fs| checkpoints(fs).latest_valid(&mut |_, _| {}).map(|_| ()))
            },
            settled: true,
            signature: checkpoint_names,
            proved_elsewhere: &[],
        },
    ]
}

fn lease_cases() -> Vec<Case> {
    vec![
        Case {
            name: "take a free lease",
            setup: |fs| {
                run_dir(fs);
                Box::new(|fs| acquire(fs, "1").map(kill))
            },
            settled: false,
            signature: lock_owner,
            proved_elsewhere: &[],
        },
        Case {
            name: "take over a lease",
            setup: |fs| {
                kill(acquire(fs, "1").unwrap());
                Box::new(|fs| acquire(fs, "2").map(kill))
            },
            settled: true,
            signature: lock_owner,
            proved_elsewhere: &[(0, "take a free lease")],
        },
        Case {
            name: "hand a lease over",
            setup: |fs| {
                let held = RefCell::new(acquire(fs, "1").ok());
                Box::new(move |fs| held.take().map_or_else(|| acquire(fs, "1"), Ok)?.hand_over("9"))
            },
            settled: true,
            signature: lock_owner,
            proved_elsewhere: &[],
        },
        Case {
            name: "release a lease",
            setup: |fs| {
                let held = RefCell::new(acquire(fs, "1").ok());
                Box::new(move |_| {
                    drop(held.take());
                    Ok(())
                })
            },
            settled: true,
            // Not durable on purpose: a release that is lost looks like a death, which costs two periods.
            signature: |fs| lock_owner(fs).replace("Some(\"1\") false", "free"),
            proved_elsewhere: &[],
        },
    ]
}
