//! What a file holds.

use std::fmt;

/// What a file holds; the first line of every file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Generated images of one class: [`ImageShard`](crate::ImageShard).
    Image,
    /// A prepared data split: [`Packed`](crate::Packed).
    Packed,
    /// Features of a split or set: [`Features`](crate::Features).
    Features,
    /// Counts, means and covariances of features: [`Statistics`](crate::Statistics).
    Statistics,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 4] = [Kind::Image, Kind::Packed, Kind::Features, Kind::Statistics];

    /// The name used in files.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Image => "image",
            Kind::Packed => "packed",
            Kind::Features => "features",
            Kind::Statistics => "statistics",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
