//! Data-set lists, labels, groups, counts and long-tail profiles; no pixels.
//!
//! Everything here runs on a login node: it reads text and folder listings, never an image.

pub mod counts;
pub mod folder;
pub mod groups;
pub mod labels;
pub mod list;
pub mod metadata;
pub mod profile;
pub mod prompts;
pub mod select;
pub mod shots;
pub mod source;
mod text;
pub mod webdataset;

pub use groups::{Grouped, Groups};
pub use list::LabeledPath;
pub use profile::Profile;
pub use select::{Members, Selection};
pub use shots::ShotGroup;
pub use source::Source;
