//! The oldest trap of MPI: started by the wrong launcher, N processes run as N worlds of one and overwrite each other.

use equipoise_base::{Error, Result};

/// Variables that tell how many ranks were started: by OpenMPI's mpirun, by that of MPICH and Intel MPI, by srun.
///
/// Slurm's comes last, and is that of the step: mpirun may start fewer ranks than the job has tasks, and starts its own
/// helpers with srun.
const STARTED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Compares the size of MPI's world with what the launcher says it started.
pub(crate) fn check(size: usize, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
    let told = STARTED.iter().find_map(|name| Some((*name, variable(name)?.parse::<usize>().ok()?)));
    match told {
        Some((name, started)) if started != size => {
            let seen =
                if size == 1 { format!("{started} worlds of one") } else { format!("a world of {size}") };
            let message = format!(
                "the launcher started {started} ranks ({name}) but this MPI sees {seen}: the binary was built with \
                 another MPI than the one that started it; under srun try --mpi=pmix (OpenMPI) or --mpi=pmi2 (MPICH)"
            );
            Err(Error::config(message).next("equipoise doctor"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::ExitCode;

    fn outcome(size: usize, variables: &[(&str, &str)]) -> Result<()> {
        let lookup =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        check(size, lookup)
    }

    #[test]
    fn n_worlds_of_one_are_refused() {
        for variables in
            [&[("SLURM_STEP_NUM_TASKS", "4")][..], &[("OMPI_COMM_WORLD_SIZE", "4")], &[("PMI_SIZE", "4")]]
        {
            let error = outcome(1, variables).unwrap_err();
            assert_eq!(error.code(), ExitCode::Config);
            assert!(error.message().contains("4 worlds of one"), "{error}");
            assert!(outcome(4, variables).is_ok());
        }
    }

    #[test]
    fn what_is_right_passes() {
        assert!(outcome(1, &[]).is_ok());
        // A job of 4 tasks whose script starts mpirun with 2 ranks, or runs a binary by hand.
        assert!(outcome(2, &[("SLURM_NTASKS", "4"), ("OMPI_COMM_WORLD_SIZE", "2")]).is_ok());
        assert!(outcome(1, &[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")]).is_ok());
        assert!(outcome(2, &[("OMPI_COMM_WORLD_SIZE", "2"), ("SLURM_STEP_NUM_TASKS", "1")]).is_ok());
    }
}
