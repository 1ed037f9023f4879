//! Which files make up a configuration.

use crate::problem::Problems;
use crate::source::{Layer, Origin, Source};
use crate::tree::{Data, Node};
use equipoise_base::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The embedded reference: every key with its default.
pub const DEFAULT: &str = include_str!("../../../configs/default.toml");

/// A parsed layer.
pub type Parsed = std::result::Result<Node, Problems>;

/// The embedded defaults.
pub fn default_layer() -> Parsed {
    parse(Layer::Default, "default.toml", Path::new("."), DEFAULT)
}

/// The site's and the user's file, where they exist.
///
/// The site's is `$EQUIPOISE_SITE` or `/etc/equipoise/config.toml`; the user's is `equipoise/config.toml` in
/// `$XDG_CONFIG_HOME` or `~/.config`.
pub fn site_and_user_files() -> Vec<(Layer, PathBuf)> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let site = set("EQUIPOISE_SITE").unwrap_or_else(|| "/etc/equipoise/config.toml".into());
    let folder = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    let user = folder.map(|folder| folder.join("equipoise/config.toml"));
    let mut files = Vec::new();
    // A site file that was asked for by name must exist; reading it will say so if it does not.
    if site.is_file() || set("EQUIPOISE_SITE").is_some() {
        files.push((Layer::Site, site));
    }
    files.extend(user.filter(|user| user.is_file()).map(|user| (Layer::User, user)));
    files
}

/// Reads a file as a layer.
///
/// # Errors
/// 78 if it cannot be read; what is wrong inside is in the parsed layer.
pub fn file_layer(layer: Layer, path: &Path) -> Result<Parsed> {
    let bytes = std::fs::read(path).map_err(|error| Error::config(format!("{}: {error}", path.display())))?;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => return Ok(Err(no_text(layer, path, &bytes, error.valid_up_to()))),
    };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(parse(layer, &path.display().to_string(), dir, text))
}

/// The byte at `offset` of a file is no text.
fn no_text(layer: Layer, path: &Path, bytes: &[u8], offset: usize) -> Problems {
    let source = Arc::new(Source { layer, name: path.display().to_string(), dir: ".".into() });
    let before = String::from_utf8_lossy(&bytes[..offset]);
    let message = format!("byte 0x{:02x} is not UTF-8 text: save the file as UTF-8", bytes[offset]);
    Problems::one(Some(&Origin::at(&source, &before, offset)), message)
}

/// Reads `--set key=value`; a value that is no TOML is taken as a string.
pub fn set_layer(argument: &str) -> Parsed {
    let name = format!("--set {argument}");
    let Some((key, value)) = argument.split_once('=') else {
        let source = Arc::new(Source { layer: Layer::Set, name, dir: ".".into() });
        return Err(Problems::one(Some(&Origin::at(&source, "", 0)), "must look like key=value"));
    };
    let parsed = parse(Layer::Set, &name, Path::new("."), argument);
    let dotted = |node: &Node| matches!(&node.data, Data::Table(entries) if !entries.is_empty());
    match parsed {
        Ok(node) if dotted(&node) => Ok(node),
        _ => parse(Layer::Set, &name, Path::new("."), &format!("{key} = {}", quoted(value.trim()))),
    }
}

/// `text` as a TOML string.
pub fn quoted(text: &str) -> String {
    toml::Value::String(text.to_string()).to_string()
}

fn parse(layer: Layer, name: &str, dir: &Path, text: &str) -> Parsed {
    Node::parse(&Arc::new(Source { layer, name: name.to_string(), dir: dir.to_owned() }), text)
}
