//! Paths in a configuration start from the file that set them, and may use variables of the environment.

use crate::problem::Problems;
use crate::schema::Schema;
use crate::source::Source;
use crate::tree::{Data, Node};
use serde_json::Value;
use std::path::{Component, Path, PathBuf};

/// Where Equipoise is installed: a folder with `configs/default.toml`.
pub const HOME: &str = "EQUIPOISE_HOME";

/// Makes every key marked `x-path` absolute.
pub fn resolve_paths(schema: &Schema, root: &mut Node) -> Problems {
    let mut problems = Problems::default();
    visit(schema, schema.root(), root, &mut problems);
    problems
}

fn visit(schema: &Schema, expected: &Value, node: &mut Node, problems: &mut Problems) {
    let is_path = schema.marked(expected, node, "x-path");
    let shape = node.clone();
    match &mut node.data {
        Data::Table(entries) => {
            for entry in entries {
                if let Some(expected) = schema.property(expected, &shape, &entry.key) {
                    visit(schema, expected, &mut entry.node, problems);
                }
            }
        }
        Data::List(items) => {
            if let Some(expected) = schema.items(expected, &shape) {
                items.iter_mut().for_each(|item| visit(schema, expected, item, problems));
            }
        }
        Data::Scalar(Value::String(text)) if is_path => match absolute(text, &node.origin.source) {
            Ok(path) => *text = path.to_string_lossy().into_owned(),
            Err(message) => problems.push(Some(&node.origin), message),
        },
        Data::Scalar(_) => {}
    }
}

fn absolute(text: &str, source: &Source) -> Result<PathBuf, String> {
    let expanded = expand(text, &|name| variable(name, source))?;
    let expanded = match expanded.strip_prefix("~/") {
        Some(rest) => format!("{}/{rest}", variable("HOME", source).ok_or("~ is unknown: HOME is not set")?),
        None => expanded,
    };
    let base = std::path::absolute(&source.dir).unwrap_or_else(|_| source.dir.clone());
    Ok(without_dots(&base.join(expanded)))
}

/// Replaces `$NAME` and `${NAME}`.
fn expand(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        let (name, tail) = match after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            Some(parts) => parts,
            None => {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
                after.split_at(end)
            }
        };
        let value = variable(name).ok_or_else(|| format!("'{text}': the variable ${name} is not set"))?;
        expanded.push_str(&value);
        rest = tail;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn variable(name: &str, source: &Source) -> Option<String> {
    let set = std::env::var(name).ok().filter(|value| !value.is_empty());
    set.or_else(|| match name {
        HOME => home(&source.dir).map(|home| home.to_string_lossy().into_owned()),
        _ => None,
    })
}

/// The installation around the executable, the current folder or the file.
fn home(file_dir: &Path) -> Option<PathBuf> {
    let starts =
        [std::env::current_exe().ok(), std::env::current_dir().ok(), std::path::absolute(file_dir).ok()];
    let mut candidates = starts.iter().flatten().flat_map(|start| start.ancestors());
    candidates.find(|folder| folder.join("configs/default.toml").is_file()).map(Path::to_owned)
}

/// Takes `.` and `..` out of an absolute path by their names alone, as a shell's `cd` does.
fn without_dots(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded_or_named() {
        let known = |name: &str| (name == "USER").then(|| "ada".to_string());
        assert_eq!(expand("/scratch/$USER/x", &known).unwrap(), "/scratch/ada/x");
        assert_eq!(expand("/scratch/${USER}x", &known).unwrap(), "/scratch/adax");
        assert_eq!(expand("$NOPE/x", &known).unwrap_err(), "'$NOPE/x': the variable $NOPE is not set");
        assert!(expand("a$", &known).is_err());
    }

    #[test]
    fn dots_go() {
        assert_eq!(without_dots(Path::new("/a/b/../c/./d")), Path::new("/a/c/d"));
    }
}
