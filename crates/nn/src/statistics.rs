//! BatchNorm statistics of a step's micro-batches, the same on every world size.
//!
//! Each micro-batch is normalised by its own statistics; the running ones then take in all of a step's, in
//! micro-batch order, on every rank.

use crate::layers::BatchNorm2d;
use crate::reduce::Ownership;
use crate::transport::Transport;
use equipoise_base::{Error, ExitCode, Result};
use tch::{Device, Kind, Tensor};

/// A part of a model, or a whole one.
pub trait Module {
    /// All batch normalisations within, in a fixed order.
    fn batch_norms(&self) -> Vec<&BatchNorm2d>;
}

/// The running statistics of all batch normalisations of a model, in one storage: they move by the same few operations
/// however many layers there are, which a GPU is glad of.
#[derive(Debug)]
pub struct RunningStatistics<'a> {
    norms: Vec<&'a BatchNorm2d>,
    /// Mean and variance of each, in order.
    values: Tensor,
    /// How many batches are in them, one number for each.
    counts: Tensor,
}

impl<'a> RunningStatistics<'a> {
    /// Moves the running statistics of `norms` into one storage; the modules see every change.
    pub fn new(norms: Vec<&'a BatchNorm2d>) -> Self {
        let (kind, device) = norms.first().map_or((Kind::Float, Device::Cpu), |norm| norm.options());
        let length: i64 = norms.iter().map(|norm| 2 * norm.channels()).sum();
        let values = Tensor::zeros([length], (kind, device));
        let counts = Tensor::zeros([norms.len() as i64], (Kind::Int64, device));
        let move_to = |tensor: &Tensor, mut view: Tensor| {
            view.copy_(tensor);
            tensor.shallow_clone().set_data(&view);
        };
        tch::no_grad(|| {
            let mut offset = 0;
            for (index, norm) in norms.iter().enumerate() {
                let ((mean, var, count), channels) = (norm.running(), norm.channels());
                move_to(mean, values.narrow(0, offset, channels));
                move_to(var, values.narrow(0, offset + channels, channels));
                move_to(count, counts.select(0, index as i64));
                offset += 2 * channels;
            }
        });
        Self { norms, values, counts }
    }

    /// What the last training forward noted, flat: mean and unbiased variance of each normalisation, in order. `None`
    /// if there is none at all.
    ///
    /// # Errors
    /// 101 if one of them took no part in that forward.
    pub fn take(&self) -> Result<Option<Tensor>> {
        let noted: Option<Vec<Tensor>> =
            self.norms.iter().map(|norm| norm.take_statistics().map(|both| both.view([-1]))).collect();
        match noted {
            Some(parts) if parts.is_empty() => Ok(None),
            Some(parts) => Ok(Some(Tensor::cat(&parts, 0))),
            None => {
                Err(Error::new(ExitCode::Bug, "a batch normalisation took no part in the training forward"))
            }
        }
    }

    /// Moves by all micro-batches of a step, on every rank in their order. `own` are this rank's, as
    /// [`RunningStatistics::take`] gave them after each forward, ascending. Collective, unless there is nothing to move.
    ///
    /// # Errors
    /// Those of the gathering.
    pub fn fold(&self, transport: &dyn Transport, ownership: &Ownership, own: &[Tensor]) -> Result<()> {
        if self.norms.is_empty() {
            return Ok(());
        }
        let options = (self.values.kind(), self.values.device());
        let own = match own.is_empty() {
            true => Tensor::zeros([0, self.values.numel() as i64], options),
            false => Tensor::stack(own, 0),
        };
        let all = transport.gather(ownership, own)?;
        (0..all.size()[0]).for_each(|row| self.apply(&all.get(row)));
        Ok(())
    }

    /// Moves by one micro-batch.
    pub fn apply(&self, noted: &Tensor) {
        tch::no_grad(|| {
            let mut values = self.values.shallow_clone();
            let _ = values.g_mul_scalar_(1. - BatchNorm2d::MOMENTUM).g_add_(&(noted * BatchNorm2d::MOMENTUM));
            let _ = self.counts.shallow_clone().g_add_scalar_(1);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Params;
    use crate::layers::Mode;
    use crate::transport::HostTree;
    use crate::weights::raw_bytes;
    use equipoise_comm::{Comm, threads};

    struct Pair(BatchNorm2d, BatchNorm2d);

    impl Module for Pair {
        fn batch_norms(&self) -> Vec<&BatchNorm2d> {
            vec![&self.0, &self.1]
        }
    }

    fn input(index: usize) -> Tensor {
        (Tensor::arange(2 * 3 * 4, (Kind::Float, Device::Cpu)) * (index as f64 + 0.3))
            .sin()
            .view([2, 3, 2, 2])
    }

    /// The state after two steps of `micro_batches`.
    fn state(comm: &dyn Comm, micro_batches: usize) -> Vec<(String, Vec<u8>)> {
        let params = Params::new(0, Kind::Float, Device::Cpu);
        let pair =
            Pair(BatchNorm2d::new(&params.root().sub("a"), 3), BatchNorm2d::new(&params.root().sub("b"), 3));
        let running = RunningStatistics::new(pair.batch_norms());
        let ownership = Ownership::new(micro_batches, comm.size()).unwrap();
        for step in 0..2 {
            let mut own = Vec::new();
            for index in ownership.of_rank(comm.rank()) {
                let x = input(step * micro_batches + index);
                let _ = pair.1.forward(&pair.0.forward(&x, Mode::Train).relu(), Mode::Train);
                own.extend(running.take().unwrap());
            }
            running.fold(&HostTree(comm), &ownership, &own).unwrap();
        }
        params.all().into_iter().map(|(name, tensor)| (name, raw_bytes(&tensor))).collect()
    }

    #[test]
    fn every_world_size_gives_the_same_running_statistics() {
        for micro_batches in [1, 3, 4] {
            let alone = threads::run(1, |comm| state(&comm, micro_batches)).remove(0);
            for world in Ownership::world_sizes(micro_batches) {
                for (rank, state) in
                    threads::run(world, |comm| state(&comm, micro_batches)).into_iter().enumerate()
                {
                    assert!(state == alone, "{micro_batches} micro-batches, rank {rank} of {world}");
                }
            }
        }
    }

    /// With one rank the running statistics are those of torch.nn.BatchNorm2d fed the micro-batches in turn.
    #[test]
    fn as_in_pytorch() {
        let params = Params::new(0, Kind::Float, Device::Cpu);
        let norm = BatchNorm2d::new(&params.root(), 3);
        let running = RunningStatistics::new(vec![&norm]);
        let (mean, var) =
            (Tensor::zeros([3], (Kind::Float, Device::Cpu)), Tensor::ones([3], (Kind::Float, Device::Cpu)));
        for index in 0..4 {
            let x = input(index);
            let ours = norm.forward(&x, Mode::Train);
            running.apply(&running.take().unwrap().unwrap());
            let theirs = x.batch_norm(None::<&Tensor>, None, Some(&mean), Some(&var), true, 0.1, 1e-5, false);
            assert!(ours.allclose(&theirs, 1e-6, 1e-6, false));
        }
        let state: std::collections::BTreeMap<_, _> = params.all().into_iter().collect();
        assert!(state["running_mean"].allclose(&mean, 1e-6, 1e-7, false));
        assert!(state["running_var"].allclose(&var, 1e-6, 1e-7, false));
        assert_eq!(state["num_batches_tracked"].int64_value(&[]), 4);
    }

    #[test]
    fn a_norm_that_did_not_run_is_told() {
        let params = Params::new(0, Kind::Float, Device::Cpu);
        let norm = BatchNorm2d::new(&params.root(), 3);
        assert_eq!(RunningStatistics::new(vec![&norm]).take().unwrap_err().code(), ExitCode::Bug);
        assert!(RunningStatistics::new(Vec::new()).take().unwrap().is_none());
    }
}
