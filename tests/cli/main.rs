//! The front end as a user meets it: messages, exit codes, counts, speed. Step binaries are shell scripts here.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod calibrate;
mod config;
mod corpus;
mod help;
mod plan;
mod recipes;
mod runs;
mod steps;
mod util;
mod weights;
