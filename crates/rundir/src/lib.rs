//! The durability crate: the only door through which a file reaches a run directory.
//!
//! Nothing appears under its final name until it is complete, verified, on disk and named on disk. The protocol, what
//! is promised per kind of failure, and why: `docs/design/durability.md`.
//!
//! | module | what it keeps |
//! |---|---|
//! | [`commit`] | one file: the old one or the new one, never a part |
//! | [`journal`] | lines that were acknowledged, in order |
//! | [`checkpoint`], [`writer`] | directories of files with a manifest: the newest valid one is found |
//! | [`lease`], [`process`] | one owner per stage, and no commit by an owner that was replaced |
//! | [`layout`], [`identity`], [`stage`] | names of everything in a run directory; opening a stage |
//! | [`product`] | whether what a finished stage has made is still there |
//! | [`records`] | which rows of `metrics.jsonl` count after restarts |
//! | [`work`] | what of the time was of use |
//! | [`scratch`], [`space`] | what is unfinished and its removal; room for the plan |
//! | [`signals`] | the end of the job |
//! | [`vfs`], [`real`], [`fault`] | the file system behind a trait: the real one, and one that crashes on demand |
//! | [`failpoint`] | where a test can end a real process |

mod acquire;
pub mod checkpoint;
pub mod commit;
mod disk;
pub mod failpoint;
pub mod fault;
pub mod identity;
pub mod journal;
pub mod layout;
pub mod lease;
mod nonce;
pub mod process;
pub mod product;
pub mod real;
pub mod records;
pub mod scratch;
pub mod signals;
pub mod space;
pub mod stage;
pub mod vfs;
pub mod work;
pub mod writer;

pub use checkpoint::{Checkpoint, Checkpoints, Manifest, Snapshot};
pub use commit::{commit_bytes, commit_json, create_dirs, json_bytes, read_json};
pub use journal::Journal;
pub use layout::{RunDir, StageDir, StageKey};
pub use lease::{Lease, LeaseGuard};
pub use process::Process;
pub use real::RealFs;
pub use signals::Deadline;
pub use stage::Stage;
pub use vfs::Vfs;
pub use writer::CheckpointWriter;
