//! The mpiruns in the wild, and the command line that each one takes.

use crate::environment::Variable;
use equipoise_base::{Error, ExitCode, Result, bail};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

/// Family and major version of an `mpirun`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// OpenMPI up to 4 (ORTE).
    OpenMpi4,
    /// OpenMPI from 5 (PRRTE).
    OpenMpi5,
    /// MPICH, Intel MPI, MVAPICH: the Hydra process manager.
    Hydra,
}

impl Flavour {
    /// Runs `mpirun --version`.
    ///
    /// # Errors
    /// Configuration: there is no such program, or it is of an unknown family.
    pub fn detect(mpirun: &Path) -> Result<Self> {
        let shown = mpirun.display();
        let output = Command::new(mpirun).arg("--version").output().map_err(|error| {
            let message = format!("{shown}: cannot run it: {error}; load an MPI module or use one rank");
            Error::new(ExitCode::Config, message).next("equipoise doctor")
        })?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        match Self::from_version_text(&text) {
            Some(flavour) => Ok(flavour),
            None => {
                let line = text.lines().next().unwrap_or("nothing");
                bail!(Config, "{shown} --version printed \"{line}\": neither OpenMPI nor MPICH")
            }
        }
    }

    /// Reads what `--version` printed.
    pub fn from_version_text(text: &str) -> Option<Self> {
        if let Some(version) = text.split("(Open MPI)").nth(1).or_else(|| text.split("(OpenRTE)").nth(1)) {
            let major: u32 = version.trim_start().split('.').next()?.parse().ok()?;
            return Some(if major >= 5 { Flavour::OpenMpi5 } else { Flavour::OpenMpi4 });
        }
        let hydra = ["HYDRA", "Intel(R) MPI", "MPICH", "mvapich"];
        hydra.iter().any(|name| text.contains(name)).then_some(Flavour::Hydra)
    }

    /// Arguments of `mpirun` that start `ranks` ranks of `program` on this machine, cores shared, not bound, with the
    /// named variables passed on.
    pub fn arguments(
        self,
        ranks: usize,
        variables: &[Variable],
        program: &Path,
        args: &[OsString],
    ) -> Vec<OsString> {
        let ranks = ranks.to_string();
        let mut line: Vec<OsString> = ["-n", &ranks].map(OsString::from).into();
        let mut add = |words: &[&str]| line.extend(words.iter().map(OsString::from));
        match self {
            Flavour::OpenMpi4 => add(&["--oversubscribe", "--bind-to", "none"]),
            Flavour::OpenMpi5 => add(&["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]),
            Flavour::Hydra => add(&["-bind-to", "none"]),
        }
        // By name only: the value comes from mpirun's own environment, so no character of it can be misread. Hydra
        // passes the whole environment on by itself.
        if self != Flavour::Hydra {
            variables.iter().for_each(|(name, _)| add(&["-x", name]));
        }
        line.push(program.as_os_str().to_owned());
        line.extend(args.iter().map(|arg| OsStr::new(arg).to_owned()));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_seen_in_the_wild() {
        let cases = [
            ("mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/", Some(Flavour::OpenMpi4)),
            ("mpirun (Open MPI) 5.0.3\n", Some(Flavour::OpenMpi5)),
            ("mpirun (Open MPI) 10.0.0rc1\n", Some(Flavour::OpenMpi5)),
            ("HYDRA build details:\n    Version:      4.0.2\n", Some(Flavour::Hydra)),
            ("Intel(R) MPI Library for Linux* OS, Version 2021.10", Some(Flavour::Hydra)),
            ("BusyBox v1.36", None),
            ("", None),
        ];
        for (text, flavour) in cases {
            assert_eq!(Flavour::from_version_text(text), flavour, "{text}");
        }
    }

    #[test]
    fn command_lines() {
        let variables = [("OMP_NUM_THREADS".to_string(), "1 2".to_string())];
        let line = |flavour: Flavour| {
            let args = ["--run".into(), "a b".into()];
            let words = flavour.arguments(3, &variables, Path::new("/x/train"), &args);
            words.join(OsStr::new("|")).into_string().unwrap()
        };
        let tail = "/x/train|--run|a b";
        let expected = format!("-n|3|--oversubscribe|--bind-to|none|-x|OMP_NUM_THREADS|{tail}");
        assert_eq!(line(Flavour::OpenMpi4), expected);
        let expected = format!("-n|3|--map-by|:OVERSUBSCRIBE|--bind-to|none|-x|OMP_NUM_THREADS|{tail}");
        assert_eq!(line(Flavour::OpenMpi5), expected);
        assert_eq!(line(Flavour::Hydra), format!("-n|3|-bind-to|none|{tail}"));
    }

    #[test]
    fn a_missing_mpirun_is_a_configuration_error() {
        let error = Flavour::detect(Path::new("/nonexistent/mpirun")).unwrap_err();
        assert_eq!(error.code(), ExitCode::Config);
        assert!(error.message().contains("/nonexistent/mpirun"));
        assert!(Flavour::detect(Path::new("/bin/true")).is_err());
    }
}
