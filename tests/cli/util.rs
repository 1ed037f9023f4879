//! A folder to work in, and the command to type there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// The repository: recipes find their data there.
pub const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// A folder of a test's own, which is also its home.
pub struct Dir(TempDir);

impl Dir {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs `equipoise` here, away from the settings of whoever runs the tests.
    #[allow(dead_code, reason = "each suite uses its part of this file")]
    pub fn equipoise(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// The command, to be changed before it is run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_equipoise"));
        command
            .args(args)
            .current_dir(self.path())
            .env("HOME", self.path())
            .env("EQUIPOISE_HOME", REPOSITORY);
        command.env_remove("XDG_CONFIG_HOME").env_remove("EQUIPOISE_SITE");
        command
    }
}

/// What a command did.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Runs a command.
    pub fn of(command: &mut Command) -> Self {
        Self::new(command.output().unwrap())
    }

    pub fn new(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Standard output of a command that succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}\n{}", self.out, self.err);
        self.out
    }

    /// Standard error of a command that ended with this code and printed nothing else.
    pub fn fails(self, code: i32) -> String {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{}", self.err);
        self.err
    }
}

/// A recipe that can be planned: two classes, files made by [`images`].
pub const RECIPE: &str = r#"schema = 1
[run]
name = "small"
[data]
name = "two classes"
root = "images"
size = [4, 4]
channels = 3
classes = ["cat", "dog"]
[data.splits]
train.source = { format = "folder", path = "train" }
test.source = { format = "folder", path = "test" }
[classifiers.g]
[classifiers.judge]
[diffusion.train]
split = "train"
[generate]
plan = { kind = "balance_to", n = 50 }
[sets.plain]
[arms.ce]
[evaluate]
splits = ["test"]
"#;

/// Files that count as images: nothing in these tests decodes them.
pub fn images(dir: &Dir) {
    for (class, count) in [("cat", 7), ("dog", 2)] {
        for index in 0..count {
            dir.write(&format!("images/train/{class}/{index}.png"), "");
            dir.write(&format!("images/test/{class}/{index}.png"), "");
        }
    }
}
