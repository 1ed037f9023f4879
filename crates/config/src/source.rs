//! Where a value was written: layer, file, line and column.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A layer of the configuration, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// The embedded `configs/default.toml`.
    Default,
    /// The cluster's file.
    Site,
    /// The user's own file.
    User,
    /// The recipe, or the resolved file of a run directory.
    Recipe,
    /// `--set key=value`.
    Set,
}

impl Layer {
    /// The layer's name in `config show --origin`.
    pub fn name(self) -> &'static str {
        match self {
            Layer::Default => "default",
            Layer::Site => "site",
            Layer::User => "user",
            Layer::Recipe => "recipe",
            Layer::Set => "--set",
        }
    }
}

/// One TOML text.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// Its layer.
    pub layer: Layer,
    /// What messages call it: the path as the user typed it, or the whole `--set` argument.
    pub name: String,
    /// Relative paths in it start here.
    pub dir: PathBuf,
}

/// A place in a [`Source`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The text.
    pub source: Arc<Source>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Origin {
    /// The place of byte `offset` of `text`.
    pub fn at(source: &Arc<Source>, text: &str, offset: usize) -> Self {
        let before = text.get(..offset.min(text.len())).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            source: source.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl Origin {
    /// The place with its layer: `recipe my.toml:3:1`.
    pub fn with_layer(&self) -> String {
        match self.source.layer {
            Layer::Set => self.to_string(),
            layer => format!("{} {self}", layer.name()),
        }
    }
}

impl fmt::Display for Origin {
    /// `file:line:col`, or the argument itself for `--set`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source.layer {
            Layer::Set => f.write_str(&self.source.name),
            _ => write!(f, "{}:{}:{}", self.source.name, self.line, self.column),
        }
    }
}
