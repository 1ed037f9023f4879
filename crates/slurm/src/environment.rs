//! Variables of a job that must not reach the jobs submitted from within it.

/// A leaked binding or size of the surrounding job would silently apply to the new one.
const LEAKING: [&str; 8] =
    ["SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "PMI", "OMPI_", "PRTE_", "EQUIPOISE_RANKS"];

/// Where Slurm's configuration lies is a matter of the machine, not of the job.
const KEPT: [&str; 1] = ["SLURM_CONF"];

/// The names to remove from the environment of sbatch. Outside a job that is none: `SBATCH_ACCOUNT` and the like are
/// then what the user or the site has set on purpose.
pub fn leaking(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let names: Vec<String> = names.into_iter().collect();
    let inside = ["SLURM_JOB_ID", "SLURM_JOBID"].iter().any(|own| names.iter().any(|name| name == own));
    if !inside {
        return Vec::new();
    }
    let leaks = |name: &String| {
        LEAKING.iter().any(|prefix| name.starts_with(prefix)) && !KEPT.contains(&name.as_str())
    };
    names.into_iter().filter(leaks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_inside_a_job_and_never_the_configuration() {
        let names = |list: &[&str]| list.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let outside = names(&["SBATCH_ACCOUNT", "SLURM_CONF", "PATH"]);
        assert!(leaking(outside).is_empty());
        let inside = names(&[
            "SLURM_JOB_ID",
            "SLURM_CPU_BIND",
            "SLURM_CONF",
            "SBATCH_ACCOUNT",
            "PMIX_RANK",
            "PMI_SIZE",
            "OMPI_X",
            "PATH",
            "SLURMD_NODENAME",
            "MY_SLURM_X",
        ]);
        let removed = leaking(inside);
        let expected = [
            "SLURM_JOB_ID",
            "SLURM_CPU_BIND",
            "SBATCH_ACCOUNT",
            "PMIX_RANK",
            "PMI_SIZE",
            "OMPI_X",
            "SLURMD_NODENAME",
        ];
        assert_eq!(removed, expected);
    }
}
