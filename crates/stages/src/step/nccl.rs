//! Gradients over NCCL: one GPU per rank, sums on the devices, the host never in between.

use super::Step;
use super::gradients::nccl_version;
use equipoise_base::{Error, ExitCode, Result, ensure, hash};
use equipoise_comm_nccl::{Monitor, NcclGroup, Stream, UniqueId, version};
use equipoise_nn::reduce::Ownership;
use equipoise_nn::{Transport, runtime};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// The ranks' NCCL group, watched.
///
/// Operations go to the legacy default stream, as all work of libtorch here: they see what was computed before them
/// and are seen by what comes after, and the allocator reuses their buffers in that order too.
pub(super) struct Nccl {
    group: Arc<NcclGroup>,
    monitor: Monitor,
}

impl Nccl {
    /// Joins all ranks; a collective. Rank 0 makes the id, sealed with the attempt, and tells it to the others.
    pub(super) fn join(step: &Step) -> Result<Self> {
        let nonce = nonce(step);
        let made = step.is_root().then(|| UniqueId::new(nonce).map(|id| id.to_bytes()));
        let told = made.as_ref().map(|made| match made {
            Ok(bytes) => Ok(bytes.to_vec()),
            Err(error) => Err(error),
        });
        let bytes: Vec<u8> = step.world.share(told)?;
        let id = UniqueId::from_bytes(&bytes, nonce)?;
        let device = match runtime::device() {
            Device::Cuda(index) => index,
            // The test double over host memory.
            _ => step.world.local_rank(),
        };
        let group = {
            let _waiting = step.world.waiting("ncclCommInitRank");
            Arc::new(NcclGroup::new(step.rank(), step.world(), &id, device)?)
        };
        if step.is_root() {
            let (name, (_, origin)) = (nccl_version()?, version()?);
            equipoise_telemetry::info!("gradients over {name} ({origin}), {} ranks", step.world());
        }
        Ok(Self { monitor: Monitor::start(Arc::clone(&group), step.ender())?, group })
    }
}

/// Known to all ranks of an attempt, and to no other attempt.
fn nonce(step: &Step) -> u64 {
    let fences = step.guard.fences().iter().map(|fence| format!("{} {}", fence.generation, fence.nonce));
    hash::xxh3(fences.collect::<Vec<_>>().join(" ").as_bytes())
}

/// A buffer as NCCL takes it.
fn floats(tensor: &Tensor) -> Result<*mut f32> {
    ensure!(
        tensor.kind() == Kind::Float && tensor.is_contiguous(),
        Bug,
        "NCCL reduces contiguous float32, not {:?} of {:?}",
        tensor.kind(),
        tensor.size()
    );
    Ok(tensor.data_ptr().cast())
}

impl Transport for Nccl {
    fn sum(&self, _ownership: &Ownership, own: Tensor) -> Result<Tensor> {
        // SAFETY: `numel` floats that nothing frees before this returns them; later work is ordered by the stream.
        unsafe { self.group.all_reduce_sum_f32(floats(&own)?, own.numel(), Stream::default())? };
        Ok(own)
    }

    fn gather(&self, ownership: &Ownership, own: Tensor) -> Result<Tensor> {
        // Every rank sends room for a whole subtree. Missing leaves are all at the end, so rows stay in order.
        let (leaves, columns) = (ownership.leaves_per_rank(), own.size()[1]);
        let options = (own.kind(), own.device());
        let send = Tensor::zeros([leaves as i64, columns], options);
        send.narrow(0, 0, own.size()[0]).copy_(&own);
        let all = Tensor::zeros([(leaves * self.group.size()) as i64, columns], options);
        // SAFETY: as in `sum`; what frees `send` reuses its memory in the order of the stream.
        unsafe {
            self.group.all_gather_f32(floats(&send)?, floats(&all)?, send.numel(), Stream::default())?;
        }
        Ok(all.narrow(0, 0, ownership.micro_batches() as i64))
    }

    fn check(&self) -> Result<()> {
        self.group.check()
    }

    fn close(self: Box<Self>) -> Result<()> {
        let Self { group, monitor } = *self;
        drop(monitor);
        match Arc::into_inner(group) {
            Some(group) => group.close(),
            None => Err(Error::new(ExitCode::Bug, "the NCCL group is still in use")),
        }
    }
}
