//! The ranks of this step: MPI where the step was started under it, a world of one otherwise.

use crate::claim_folder::ClaimFolder;
use equipoise_base::{Error, ExitCode, Result, bail};
use equipoise_comm::claim_files::ClaimFiles;
use equipoise_comm::claims::{Claim, Claims, LocalClaims};
use equipoise_comm::server::{ServedClaims, Tally};
#[cfg(feature = "mpi")]
use equipoise_comm::watchdog::Watched;
use equipoise_comm::watchdog::{Bounds, Pulse, Watchdog};
use equipoise_comm::{Comm, LocalComm, Messages, StopFlag};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// The ranks and what watches over them.
pub struct World {
    messages: Option<Arc<dyn Messages>>,
    local: LocalComm,
    pulse: Arc<Pulse>,
    #[cfg(feature = "mpi")]
    mpi: Option<Arc<equipoise_comm_mpi::MpiComm>>,
}

/// Joins the ranks that were started together.
///
/// # Errors
/// 78 when the process was started under an MPI that is not the one it was built with.
pub fn init() -> Result<World> {
    let pulse = Arc::new(Pulse::default());
    let started_by_mpi =
        ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"].iter().any(|name| std::env::var_os(name).is_some());
    if !started_by_mpi {
        return Ok(World {
            messages: None,
            local: LocalComm::default(),
            pulse,
            #[cfg(feature = "mpi")]
            mpi: None,
        });
    }
    #[cfg(feature = "mpi")]
    {
        let mpi = Arc::new(equipoise_comm_mpi::MpiComm::init()?);
        let messages: Arc<dyn Messages> = Arc::new(Watched::new(mpi.clone(), pulse.clone()));
        Ok(World { messages: Some(messages), local: LocalComm::default(), pulse, mpi: Some(mpi) })
    }
    #[cfg(not(feature = "mpi"))]
    bail!(Config, "this build has no MPI: start one rank, or build with the default features")
}

impl World {
    /// The group of ranks.
    pub fn comm(&self) -> &dyn Comm {
        match &self.messages {
            Some(messages) => messages.as_ref(),
            None => &self.local,
        }
    }

    /// A wrong MPI flavour silently starts N worlds of one: the batch script says how many ranks there must be, and srun
    /// how many it has started (but it starts mpirun's helpers as well).
    ///
    /// # Errors
    /// 78 naming the option of srun if this world has another size.
    pub fn require_size(&self) -> Result<()> {
        self.require_size_told(|name| std::env::var(name).ok())
    }

    fn require_size_told(&self, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
        let told = |name: &'static str| Some((name, variable(name)?.parse::<usize>().ok()?));
        let started = self.messages.is_none().then(|| told("SLURM_STEP_NUM_TASKS")).flatten();
        let size = self.comm().size();
        match told("EQUIPOISE_RANKS").or(started) {
            Some((name, ranks)) if ranks != size => Err(Error::config(format!(
                "{ranks} ranks were started ({name}), but this one sees a world of {size}: they do not find each other; \
                 start them with srun --mpi=pmix (OpenMPI) or --mpi=pmi2 (MPICH): set slurm.mpi"
            ))
            .next("equipoise doctor")),
            _ => Ok(()),
        }
    }

    /// The MPI library, in one line.
    pub fn library(&self) -> String {
        #[cfg(feature = "mpi")]
        if self.mpi.is_some() {
            let library = equipoise_comm_mpi::MpiComm::library();
            return library.lines().next().unwrap_or("unknown MPI").to_string();
        }
        "no MPI".into()
    }

    /// Rank among those of this node, as the launcher says; 0 where it says nothing.
    pub fn local_rank(&self) -> usize {
        let names = ["OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID"];
        names.iter().find_map(|name| std::env::var(name).ok()?.parse().ok()).unwrap_or(0)
    }

    /// Tells all ranks what rank 0 found; its error becomes everyone's.
    pub fn share<T: Serialize + DeserializeOwned>(&self, own: Option<Result<T, &Error>>) -> Result<T> {
        #[derive(Serialize, serde::Deserialize)]
        enum Shared<T> {
            Found(T),
            Refused { code: ExitCode, message: String, next: Option<String> },
        }
        let shared = own.map(|own| match own {
            Ok(found) => Shared::Found(found),
            Err(error) => Shared::Refused {
                code: error.code(),
                message: error.message().to_string(),
                next: error.next_command().map(str::to_string),
            },
        });
        let mut bytes = match &shared {
            Some(shared) => serde_json::to_vec(shared).unwrap_or_default(),
            None => Vec::new(),
        };
        self.comm().broadcast(&mut bytes, 0)?;
        match serde_json::from_slice(&bytes) {
            Ok(Shared::Found(found)) => Ok(found),
            Ok(Shared::Refused { code, message, next }) => {
                let error = Error::new(code, message);
                Err(match next {
                    Some(next) => error.next(next),
                    None => error,
                })
            }
            Err(error) => bail!(Bug, "rank 0 sent something else: {error}: do all ranks run the same build?"),
        }
    }

    /// Shares units out.
    ///
    /// # Errors
    /// Those of the transport.
    pub fn claims(&self, units: Vec<usize>, stop: StopFlag) -> Result<StageClaims> {
        Ok(match &self.messages {
            Some(messages) => StageClaims::Served(ServedClaims::start(messages.clone(), units, stop)?),
            None => StageClaims::Local(LocalClaims::new(units, stop)),
        })
    }

    /// A sign of life for the watchdog.
    pub fn beat(&self) {
        self.pulse.beat();
    }

    /// Starts the watchdog; a world of one needs none.
    ///
    /// # Errors
    /// 74 if its thread cannot start.
    pub fn watch(&self, report: impl Fn(ExitCode, &str) + Send + 'static) -> Result<Option<Watchdog>> {
        let Some(messages) = &self.messages else { return Ok(None) };
        let report = Box::new(move |reason: &str| report(equipoise_comm::watchdog::LOST_PEER, reason));
        Watchdog::start(messages.clone(), self.pulse.clone(), Bounds::default(), report).map(Some)
    }

    /// A panic on any thread of any rank ends all of them.
    pub fn abort_on_panic(&self, report: impl Fn(&str) + Send + Sync + 'static) {
        equipoise_comm::guard::abort_on_panic(self.shared(), report);
    }

    /// The group for other threads, to end all ranks from.
    pub fn shared(&self) -> Arc<dyn Comm> {
        match &self.messages {
            Some(messages) => messages.clone(),
            None => Arc::new(LocalComm::default()),
        }
    }

    /// Marks the time until the guard is dropped as waiting for other ranks, for the watchdog's report.
    #[cfg(feature = "nccl")]
    pub fn waiting(&self, what: &'static str) -> equipoise_comm::watchdog::Waiting<'_> {
        self.pulse.enter(what)
    }

    /// Leaves the group; collective, after the last communication and without a watchdog.
    ///
    /// # Errors
    /// Those of the transport.
    pub fn finish(&self) -> Result<()> {
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            return mpi.finish();
        }
        Ok(())
    }
}

/// Claims of a stage, wherever they are served.
pub enum StageClaims {
    /// A world of one.
    Local(LocalClaims),
    /// Rank 0 serves.
    Served(ServedClaims),
    /// Tasks of an array job share a folder.
    Files(ClaimFiles<ClaimFolder>),
}

impl StageClaims {
    /// State of all units, where this rank knows it.
    pub fn tally(&self) -> Option<Tally> {
        match self {
            StageClaims::Local(_) | StageClaims::Files(_) => None,
            StageClaims::Served(served) => served.tally(),
        }
    }

    fn inner(&self) -> &dyn Claims {
        match self {
            StageClaims::Local(local) => local,
            StageClaims::Served(served) => served,
            StageClaims::Files(files) => files,
        }
    }
}

impl Claims for StageClaims {
    fn next(&self) -> Result<Claim> {
        self.inner().next()
    }

    fn finished(&self, unit: usize) -> Result<()> {
        self.inner().finished(unit)
    }

    fn should_stop(&self) -> Result<bool> {
        self.inner().should_stop()
    }

    fn close(&self) -> Result<()> {
        self.inner().close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_of_one_among_several_is_refused() {
        let world = World {
            messages: None,
            local: LocalComm::default(),
            pulse: Arc::default(),
            #[cfg(feature = "mpi")]
            mpi: None,
        };
        let check = |variables: &[(&str, &str)]| {
            let value = |name: &str| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
            };
            world.require_size_told(value)
        };
        for name in ["EQUIPOISE_RANKS", "SLURM_STEP_NUM_TASKS"] {
            let error = check(&[(name, "4")]).unwrap_err();
            assert_eq!(error.code(), ExitCode::Config);
            assert!(error.message().contains("--mpi=pmix"), "{error}");
            check(&[(name, "1")]).unwrap();
        }
        // Under sbatch alone, without srun, the job's number of tasks says nothing about this process.
        check(&[("SLURM_NTASKS", "4")]).unwrap();
    }
}
