//! The part of `equipoise doctor` that asks Slurm.

use super::Finding;
use crate::output;
use equipoise_base::{Error, ExitCode, Result};
use equipoise_config::Resolved;
use equipoise_config::layers::{default_layer, file_layer, set_layer, site_and_user_files};
use equipoise_config::recipe::Recipe;
use equipoise_config::slurm::{Launcher, Slurm};
use equipoise_slurm::site::{self, Cluster};
use equipoise_slurm::{Commands, Failure, query};

/// What Slurm's settings mean for batch jobs. A machine without Slurm passes: runs work there.
pub fn findings() -> Vec<Finding> {
    let cluster = match query::cluster(&Commands::default()) {
        Ok(cluster) => cluster,
        Err(Failure::Missing(_)) => {
            return vec![Finding::new(
                "Slurm",
                Ok("none here: `equipoise run` works, `submit` does not".into()),
            )];
        }
        Err(failure) => return vec![Finding::new("Slurm", Err(failure.to_string()))],
    };
    let mut findings: Vec<Finding> = site::settings(&cluster)
        .into_iter()
        .map(|(name, text)| Finding::new(format!("Slurm {name}"), Ok(text)))
        .collect();
    let modes = site::preemption(&cluster).into_iter();
    findings.extend(modes.map(|(name, text)| Finding::new(format!("partition {name}"), Ok(text))));
    findings.push(match configured(&[]) {
        Ok(recipe) => Finding::new("slurm.mpi", mpi(&recipe.slurm, &cluster)),
        Err(error) => Finding::new("configuration", Err(error.to_string())),
    });
    findings
}

/// What the site's and the user's files set, and these settings on top.
///
/// # Errors
/// 78 naming the key that cannot be used.
pub fn configured(sets: &[String]) -> Result<Recipe> {
    let mut layers = vec![default_layer()];
    for (layer, file) in site_and_user_files() {
        layers.push(file_layer(layer, &file)?);
    }
    layers.push(set_layer("run.name=doctor"));
    layers.extend(sets.iter().map(|set| set_layer(set)));
    Ok(Resolved::from_layers(layers).map_err(Error::from)?.recipe)
}

fn mpi(slurm: &Slurm, cluster: &Cluster) -> std::result::Result<String, String> {
    let offered = cluster.mpi.join(", ");
    match slurm.launcher {
        Launcher::Mpirun => Ok("not used: slurm.launcher = \"mpirun\"".into()),
        Launcher::Srun if cluster.mpi.contains(&slurm.mpi) => {
            Ok(format!("{} (offered: {offered})", slurm.mpi))
        }
        Launcher::Srun => {
            let mpi = &slurm.mpi;
            Err(format!(
                "srun does not offer '{mpi}' but {offered}: set slurm.mpi, or slurm.launcher = \"mpirun\""
            ))
        }
    }
}

/// Prints a first site file.
///
/// # Errors
/// 78 on a machine without Slurm, 74 if it gives no answer.
pub fn write_site() -> Result<ExitCode> {
    let cluster = query::cluster(&Commands::default())?;
    output::line(site::propose(&cluster).trim_end());
    Ok(ExitCode::Done)
}
