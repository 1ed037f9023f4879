//! Encoding and committing in a thread, while the next batch is sampled.
//!
//! At most one batch waits beside the one being written, and none is sampled beyond the first of a shard before the
//! shard in front is committed: a SIGKILL costs no more than a shard and the batch that was sampled meanwhile.

use crate::generate::append;
use crate::step::Committer;
use crate::synthesis::Made;
use equipoise_base::{Error, ExitCode, Result, ResultExt as _, trace};
use equipoise_rundir::signals;
use equipoise_shards::{FileImage, ImageShard};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// A shard to be filled.
pub(crate) struct Open {
    /// Its position in the layout.
    pub(crate) id: u64,
    /// Group of all its images, if the plan is by group.
    pub(crate) group: Option<u32>,
    /// What it holds already.
    pub(crate) file: ImageShard,
    /// Where it belongs once it is finished.
    pub(crate) path: PathBuf,
    /// Where its finished batches are left on a stop.
    pub(crate) part: PathBuf,
}

/// A shard on disk under its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    /// Its position in the layout.
    pub(crate) id: u64,
    /// How long that took.
    pub(crate) took: Duration,
}

enum Job {
    Begin(Box<Open>),
    Batch(Vec<Made>),
    /// The file says whether all operators that made it are deterministic.
    Commit {
        reproducible: bool,
    },
    Leave {
        reproducible: bool,
    },
}

/// The thread. An error of it surfaces at the next call.
pub(crate) struct ShardWriter {
    /// `None` once no more is to come, which ends the thread.
    jobs: Option<SyncSender<Job>>,
    outcomes: Receiver<Result<Committed>>,
    thread: Option<JoinHandle<()>>,
}

impl ShardWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// 74 if it cannot be started.
    pub(crate) fn start(committer: Committer) -> Result<Self> {
        let (jobs, inbox) = sync_channel(1);
        let (outbox, outcomes) = channel();
        let thread = std::thread::Builder::new().name("shards".into()).spawn(move || {
            signals::block_in_this_thread();
            work(&committer, &inbox, &outbox);
        });
        let thread = Some(thread.or_exit(ExitCode::Io, "cannot start the thread for shards")?);
        Ok(Self { jobs: Some(jobs), outcomes, thread })
    }

    /// Takes up a shard; the one before was committed or left.
    ///
    /// # Errors
    /// Those of what was handed over before.
    pub(crate) fn begin(&self, open: Open) -> Result<()> {
        self.send(Job::Begin(Box::new(open)))
    }

    /// Adds the next images of the shard.
    ///
    /// # Errors
    /// Those of what was handed over before.
    pub(crate) fn batch(&self, made: Vec<Made>) -> Result<()> {
        self.send(Job::Batch(made))
    }

    /// Commits the shard, which is complete.
    ///
    /// # Errors
    /// Those of what was handed over before.
    pub(crate) fn commit(&self) -> Result<()> {
        let reproducible = is_reproducible()?;
        self.send(Job::Commit { reproducible })
    }

    /// Leaves what the shard holds as a part, for whoever claims it next.
    ///
    /// # Errors
    /// Those of what was handed over before.
    pub(crate) fn leave(&self) -> Result<()> {
        let reproducible = is_reproducible()?;
        self.send(Job::Leave { reproducible })
    }

    /// Shards committed since the last call; never waits.
    ///
    /// # Errors
    /// Those of what was handed over before.
    pub(crate) fn committed(&self) -> Result<Vec<Committed>> {
        self.outcomes.try_iter().collect()
    }

    /// Waits until everything is on disk; shards committed since the last call.
    ///
    /// # Errors
    /// Those of what was handed over before.
    pub(crate) fn finish(mut self) -> Result<Vec<Committed>> {
        self.jobs = None;
        self.outcomes.iter().collect()
    }

    fn send(&self, job: Job) -> Result<()> {
        if self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok()) {
            return Ok(());
        }
        // The thread ends at its first error, which is the last thing that it says.
        match self.outcomes.iter().find_map(Result::err) {
            Some(error) => Err(error),
            None => Err(Error::new(ExitCode::Bug, "the thread for shards has ended")),
        }
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Asked before the next shard is begun: what runs later has not made this one.
fn is_reproducible() -> Result<bool> {
    Ok(equipoise_nn::runtime::nondeterministic_operators()?.is_empty())
}

fn work(committer: &Committer, inbox: &Receiver<Job>, outbox: &Sender<Result<Committed>>) {
    let mut open = None;
    for job in inbox {
        let outcome = handle(committer, job, &mut open);
        let failed = outcome.is_err();
        let heard = outcome.transpose().is_none_or(|outcome| outbox.send(outcome).is_ok());
        if failed || !heard {
            return;
        }
    }
}

fn handle(committer: &Committer, job: Job, open: &mut Option<Box<Open>>) -> Result<Option<Committed>> {
    let none = || Error::new(ExitCode::Bug, "no shard was begun");
    match job {
        Job::Begin(begun) => *open = Some(begun),
        Job::Batch(made) => {
            let _span = trace::span("encode");
            let open = open.as_mut().ok_or_else(none)?;
            made.iter().try_for_each(|image| append(&mut open.file, image, open.group))?;
        }
        Job::Commit { reproducible } => {
            let mut open = open.take().ok_or_else(none)?;
            let _span = trace::numbered("commit", open.id);
            let took = committer.commit(&open.path, &bytes(&mut open.file, reproducible)?)?;
            committer.remove_if_there(&open.part)?;
            return Ok(Some(Committed { id: open.id, took }));
        }
        Job::Leave { reproducible } => {
            let mut open = open.take().ok_or_else(none)?;
            let _span = trace::numbered("commit", open.id);
            committer.commit(&open.part, &bytes(&mut open.file, reproducible)?)?;
        }
    }
    Ok(None)
}

fn bytes(file: &mut ImageShard, reproducible: bool) -> Result<FileImage> {
    if !reproducible {
        file.mark_irreproducible();
    }
    file.write()
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::clock::SystemClock;
    use equipoise_rundir::fault::FaultFs;
    use equipoise_rundir::lease::{Lease, LeaseRequest};
    use equipoise_rundir::vfs::Vfs as _;
    use equipoise_shards::{Codec, Flags, ShardMeta};
    use std::sync::Arc;

    fn open(id: u64) -> Open {
        let file = ImageShard::new(ShardMeta {
            identity: "x".into(),
            class: 0,
            class_name: "bag".into(),
            prompt: String::new(),
            first: 4 * id,
            planned: 4,
            shape: [1, 2, 1],
            codec: Codec::Raw,
            resize_filter: String::new(),
            criterion: String::new(),
            guided_steps: 0,
            reproducible: true,
            tool_version: "t".into(),
        });
        let (path, part) = (format!("/set/{id}.h5").into(), format!("/set/.parts/{id}.h5").into());
        Open { id, group: None, file: file.unwrap(), path, part }
    }

    /// Two images, the first of this index.
    fn images(first: u64) -> Vec<Made> {
        let made = |index| Made {
            index,
            seed: index,
            pixels: Some(vec![index as u8, 1]),
            condition: None,
            criterion: Vec::new(),
            flags: Flags::NONE,
        };
        (first..first + 2).map(made).collect()
    }

    fn writer(fs: &FaultFs) -> (ShardWriter, Lease) {
        fs.create_dir("/run".as_ref()).unwrap();
        let clock = SystemClock::default();
        let request = LeaseRequest { background: false, ..LeaseRequest::new("/run/lock", &clock) };
        let lease = Lease::acquire(Arc::new(fs.clone()), &request).unwrap();
        (ShardWriter::start(Committer::new(Arc::new(fs.clone()), lease.guard().clone())).unwrap(), lease)
    }

    #[test]
    fn shards_are_those_written_at_once_and_a_stop_leaves_a_part() {
        let fs = FaultFs::new();
        let (writer, _lease) = writer(&fs);
        let mut expected = Vec::new();
        for id in 0..2 {
            let mut whole = open(id).file;
            writer.begin(open(id)).unwrap();
            for first in [4 * id, 4 * id + 2] {
                writer.batch(images(first)).unwrap();
                images(first).iter().for_each(|image| append(&mut whole, image, None).unwrap());
            }
            writer.commit().unwrap();
            expected.push(whole.write().unwrap());
        }
        writer.begin(open(2)).unwrap();
        writer.batch(images(8)).unwrap();
        writer.leave().unwrap();
        let committed: Vec<u64> = writer.finish().unwrap().iter().map(|committed| committed.id).collect();
        assert_eq!(committed, [0, 1]);
        for (id, bytes) in expected.iter().enumerate() {
            assert!(*fs.read(format!("/set/{id}.h5").as_ref()).unwrap() == **bytes, "shard {id}");
        }
        let part = ImageShard::from_bytes("part", &fs.read("/set/.parts/2.h5".as_ref()).unwrap()).unwrap();
        assert_eq!((part.len(), part.next_index()), (2, 10));
        assert!(fs.read("/set/2.h5".as_ref()).is_err());
    }

    #[test]
    fn an_error_surfaces_at_a_later_call_and_nothing_follows_it() {
        let fs = FaultFs::new();
        let (writer, _lease) = writer(&fs);
        fs.limit_bytes(Some(fs.used().0 + 10));
        writer.begin(open(0)).unwrap();
        let rest = || {
            writer.batch(images(0))?;
            writer.batch(images(2))?;
            writer.commit()?;
            writer.begin(open(1))?;
            writer.batch(images(4))?;
            writer.batch(images(6))
        };
        assert_eq!(rest().unwrap_err().code(), ExitCode::Io);
        assert!(fs.read("/set/0.h5".as_ref()).is_err());
    }
}
