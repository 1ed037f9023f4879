//! TOML layers to one resolved, validated, hashed configuration, and the stages it stands for.
//!
//! | module | owns |
//! |---|---|
//! | [`source`], [`tree`], [`layers`] | parsed text that remembers layer, file, line and column |
//! | [`merge`], [`place`] | stronger over weaker layers, inheritance, paths |
//! | [`schema`], [`check`], [`problem`], [`nearest`] | what is allowed, and messages about what is not |
//! | [`recipe`], [`slurm`], [`method`], [`named`] | the typed structure; method parameters stay plain values here |
//! | [`resolved`], [`render`] | the result: values, identity, provenance, TOML |
//! | [`pipeline`] | the stages of a recipe, in order, each with its identity |
//! | [`examples`] | the recipes that travel with the binary |

mod build_id;
pub mod check;
pub mod examples;
pub mod layers;
pub mod merge;
pub mod method;
pub mod named;
pub mod nearest;
pub mod pipeline;
pub mod place;
pub mod problem;
pub mod recipe;
pub mod render;
pub mod resolved;
pub mod schema;
pub mod slurm;
pub mod source;
pub mod tree;

pub use build_id::BUILD_ID;
pub use layers::DEFAULT;
pub use named::Named;
pub use pipeline::{Kind, Stage, stage, stages};
pub use problem::{Problem, Problems};
pub use recipe::Recipe;
pub use resolved::{Resolved, load_recipe, load_resolved};
pub use schema::{SCHEMA, schema_for_recipe};
