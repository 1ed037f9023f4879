//! The loops: orchestration only, no maths, no formats.
//!
//! [`step`] is what every step binary does around its loop; each stage is one file; [`programs`] says which binary runs
//! which.

mod claim_folder;
mod data;
mod dropout;
mod embed;
mod entry;
mod evaluate;
mod facts;
mod features;
mod generate;
mod grid;
mod hello;
mod inputs;
mod job;
mod latent;
mod measure;
mod nets;
mod precision;
mod prepare;
mod pretrain;
pub mod programs;
pub mod regenerate;
mod schema;
mod search;
mod shard_writer;
mod source;
mod stand_in;
mod statistics;
mod step;
mod sweep;
mod synthesis;
pub mod toy;
mod train;
mod training;
mod world;

pub use entry::main;
pub use generate::{ShardEntry, ShardIndex};
pub use step::Step;
pub use training::Ended;
