//! Everything that is wrong with a configuration, in one go.

use crate::source::Origin;
use equipoise_base::Error;
use std::fmt;

/// So many problems are shown; more only hide the first.
const SHOWN: usize = 20;

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Where it was written; `None` if it was written nowhere.
    pub origin: Option<Origin>,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{origin}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// The problems of a configuration, in the order of the files.
#[derive(Clone, Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds a problem; the same one, seen again through inheritance, is not repeated.
    pub fn push(&mut self, origin: Option<&Origin>, message: impl Into<String>) {
        let problem = Problem { origin: origin.cloned(), message: message.into() };
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    /// A single problem.
    pub fn one(origin: Option<&Origin>, message: impl Into<String>) -> Self {
        let mut problems = Self::default();
        problems.push(origin, message);
        problems
    }

    /// Nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The problems.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// These and those.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// `value`, if nothing is wrong.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl From<Problems> for Error {
    /// One line per problem, the first 20.
    fn from(problems: Problems) -> Self {
        let mut lines: Vec<String> = problems.iter().take(SHOWN).map(Problem::to_string).collect();
        if problems.0.len() > SHOWN {
            lines.push(format!("... and {} more", problems.0.len() - SHOWN));
        }
        Error::config(lines.join("\n"))
    }
}
