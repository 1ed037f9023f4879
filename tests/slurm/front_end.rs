//! The front end against a Slurm of shell scripts: what real daemons cannot be made to say (F13, F20, F27, F28, F30).

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "front_end/batch.rs"]
mod batch;
#[path = "front_end/doctor.rs"]
mod doctor;
#[path = "front_end/site.rs"]
mod site;
#[path = "front_end/status.rs"]
mod status;
#[path = "front_end/submit.rs"]
mod submit;
#[path = "../cli/util.rs"]
mod util;
