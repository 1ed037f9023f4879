//! What carries the gradients of a training between its ranks: chosen here, once, for all stages that train.
//!
//! | ranks compute on | transport | bits |
//! |---|---|---|
//! | CPUs, or share GPUs | [`HostTree`] over MPI | equal at every world size whose ranks hold whole subtrees |
//! | one GPU each | NCCL | equal at the same number of ranks and nodes, which is then part of the identity |

use super::Step;
use crate::world::World;
use equipoise_base::{Result, bail};
use equipoise_comm::Comm;
use equipoise_config::{Kind, Stage};
use equipoise_nn::reduce::Ownership;
use equipoise_nn::{FlatParams, HostTree, OverlappedTree, Transport, runtime};
use equipoise_rundir::Process;
use std::collections::{BTreeMap, BTreeSet};
use tch::Device;

/// Length of a GPU's UUID.
const GPU_BYTES: usize = 16;

/// For tests only: `tree` or `nccl` whatever the devices are. NCCL's test double works on host memory.
const VARIABLE: &str = "EQUIPOISE_GRADIENTS";

/// The transport of a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Over MPI and host memory.
    Tree,
    /// Over NCCL, between ranks on this many nodes.
    Nccl { nodes: usize },
}

impl Choice {
    /// The same on all ranks; a collective.
    ///
    /// # Errors
    /// 78 for an unknown transport, or one that this build lacks.
    pub(super) fn of(world: &World) -> Result<Self> {
        let places = Places::gather(world.comm(), runtime::gpu_uuid(), &Process::current().host)?;
        let nccl = match std::env::var(VARIABLE).as_deref() {
            Err(_) => cfg!(feature = "nccl") && world.comm().size() > 1 && places.have_a_gpu_each,
            Ok("tree") => false,
            Ok("nccl") if cfg!(feature = "nccl") => true,
            Ok("nccl") => {
                bail!(Config, "{VARIABLE}=nccl: this build has no NCCL; build with the feature nccl")
            }
            Ok(other) => bail!(Config, "{VARIABLE}={other}: expected tree or nccl"),
        };
        Ok(if nccl { Self::Nccl { nodes: places.nodes } } else { Self::Tree })
    }

    /// Identity fields of a training over this transport: none where the number of ranks does not matter.
    ///
    /// # Errors
    /// 78 if NCCL cannot be loaded.
    pub(super) fn facts(self, stage: &Stage, world: &World) -> Result<BTreeMap<String, String>> {
        let trains = matches!(stage.kind, Kind::Classifier | Kind::Arm | Kind::Diffusion);
        let value = match self {
            _ if !trains => return Ok(BTreeMap::new()),
            Self::Tree if runtime::device() == Device::Cpu => return Ok(BTreeMap::new()),
            Self::Tree => "tree".into(),
            Self::Nccl { nodes } => {
                let ranks = world.comm().size();
                format!("{} over {ranks} ranks on {nodes} nodes", nccl_version()?)
            }
        };
        Ok(BTreeMap::from([("machine.gradients".into(), value)]))
    }
}

/// Where the ranks compute.
#[derive(Debug, PartialEq, Eq)]
struct Places {
    nodes: usize,
    have_a_gpu_each: bool,
}

impl Places {
    /// From every rank's GPU and host.
    fn gather(comm: &dyn Comm, gpu: Option<[u8; GPU_BYTES]>, host: &str) -> Result<Self> {
        let own = [&gpu.unwrap_or_default()[..], host.as_bytes()].concat();
        let all = comm.all_gather(&own)?;
        let parts = || all.iter().filter_map(|place| place.split_at_checked(GPU_BYTES));
        let gpus: BTreeSet<&[u8]> =
            parts().map(|(gpu, _)| gpu).filter(|gpu| *gpu != [0; GPU_BYTES]).collect();
        let nodes: BTreeSet<&[u8]> = parts().map(|(_, host)| host).collect();
        Ok(Self { nodes: nodes.len(), have_a_gpu_each: gpus.len() == all.len() })
    }
}

impl Step {
    /// Joins the ranks for a training; a collective.
    ///
    /// # Errors
    /// 78 if NCCL cannot be loaded or used, on all ranks; 74 if it fails.
    pub fn gradient_transport(&self) -> Result<Box<dyn Transport + '_>> {
        match self.gradients {
            Choice::Tree => Ok(Box::new(HostTree(self.comm()))),
            #[cfg(feature = "nccl")]
            Choice::Nccl { .. } => Ok(Box::new(super::nccl::Nccl::join(self)?)),
            #[cfg(not(feature = "nccl"))]
            Choice::Nccl { .. } => bail!(Bug, "this build has no NCCL"),
        }
    }
}

impl Step {
    /// Sums that travel during backward, where ranks exchange through host memory; a collective.
    ///
    /// # Errors
    /// 74 if no thread can be started.
    pub fn overlapped_tree(
        &self,
        flat: &FlatParams,
        ownership: &Ownership,
    ) -> Result<Option<OverlappedTree>> {
        let overlaps = self.gradients == Choice::Tree && self.world() > 1;
        overlaps.then(|| OverlappedTree::new(flat, ownership, self.world.shared())).transpose()
    }
}

#[cfg(feature = "nccl")]
pub(super) fn nccl_version() -> Result<String> {
    let (version, _) = equipoise_comm_nccl::version()?;
    Ok(format!("NCCL {}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}

#[cfg(not(feature = "nccl"))]
fn nccl_version() -> Result<String> {
    bail!(Bug, "this build has no NCCL")
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_comm::threads;

    /// The places that ranks with these GPUs and hosts see, all the same.
    fn places(ranks: &[(Option<u8>, &str)]) -> Places {
        let seen = threads::run(ranks.len(), |comm| {
            let (gpu, host) = ranks[comm.rank()];
            Places::gather(&comm, gpu.map(|byte| [byte; GPU_BYTES]), host).unwrap()
        });
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
        seen.into_iter().next().unwrap()
    }

    #[test]
    fn nccl_needs_a_gpu_for_every_rank() {
        let each = |ranks: &[(Option<u8>, &str)]| places(ranks).have_a_gpu_each;
        assert!(each(&[(Some(1), "a"), (Some(2), "a")]));
        assert!(!each(&[(Some(1), "a"), (Some(1), "a")]), "two ranks share one");
        assert!(!each(&[(Some(1), "a"), (None, "b")]) && !each(&[(None, "a")]));
        assert_eq!(places(&[(Some(1), "a"), (Some(2), "b"), (Some(3), "b")]).nodes, 2);
    }
}
