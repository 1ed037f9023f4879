//! Batch jobs: scripts out of a configuration, text of Slurm's commands into values, and decisions.
//!
//! Everything but [`commands`] is a pure function. How the parts work together: `docs/design/slurm.md`.
//!
//! | module | owns |
//! |---|---|
//! | [`settings`], [`shape`] | what a stage asks for: keys by pattern of its name, nodes and ranks |
//! | [`script`], [`quote`] | the batch script, from the template in `slurm/` |
//! | [`environment`] | variables that must not leak from a job into the jobs it submits |
//! | [`state`], [`squeue`], [`sacct`], [`scontrol`], [`sinfo`], [`nodes`], [`duration`] | what Slurm prints |
//! | [`commands`], [`query`] | asking Slurm, with a time limit, and telling a refusal from a hiccup |
//! | [`submission`] | sbatch so that a request that timed out never makes a second job |
//! | [`decide`], [`requeue`] | what follows when a step has ended |
//! | [`record`] | the journals in `RUN/slurm/` |
//! | [`hello`] | the script of `doctor --node` |
//! | [`site`] | what a cluster's settings mean, and a first configuration for it |
//! | [`estimate`] | how many attempts a stage takes at a time limit |

pub mod commands;
pub mod decide;
pub mod duration;
pub mod environment;
pub mod estimate;
pub mod hello;
pub mod nodes;
pub mod query;
pub mod quote;
pub mod record;
pub mod requeue;
pub mod sacct;
pub mod scontrol;
pub mod script;
pub mod settings;
pub mod shape;
pub mod sinfo;
pub mod site;
pub mod squeue;
pub mod state;
pub mod submission;

pub use commands::{Commands, Failure};
pub use script::Script;
pub use state::JobState;
