//! The tree of [`crate::reduce`] taken while backward still computes: gradients are summed bucket by bucket, the last
//! layers first, and a thread exchanges each bucket with the other ranks as soon as it is complete.
//!
//! An element meets the same partners in the same order as when all of them are summed at once, so not a bit differs.

use crate::flat::{FlatParams, Slice};
use crate::reduce::{GradientTree, Ownership};
use crate::shim;
use crate::transport::{HostTree, Transport as _};
use equipoise_base::{Error, ExitCode, Result, ResultExt as _, trace};
use equipoise_comm::Comm;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use tch::Tensor;

/// Buckets of a model, about, as far as the bounds allow: the more, the earlier the first one leaves.
const BUCKETS: i64 = 8;
/// Bytes of a bucket: long enough for a network to be busy with, short enough to leave early. PyTorch's DDP takes 25 MB
/// on GPUs.
const BUCKET_BYTES: (i64, i64) = (64 << 10, 4 << 20);

/// Consecutive parameters that are summed together, from the last parameter to the first, as backward reaches them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    /// Elements of each bucket in a flat vector, gaps included.
    ranges: Vec<Range<i64>>,
    /// Bucket of each parameter.
    bucket_of: Vec<usize>,
}

impl Plan {
    /// `length` is that of the flat vector.
    fn new(slices: &[Slice], length: i64, bucket: i64) -> Self {
        let (mut ranges, mut bucket_of) = (Vec::<Range<i64>>::new(), vec![0; slices.len()]);
        let mut end = length;
        for (parameter, slice) in slices.iter().enumerate().rev() {
            match ranges.last_mut() {
                Some(last) if last.end - last.start < bucket => last.start = slice.offset,
                _ => ranges.push(slice.offset..end),
            }
            bucket_of[parameter] = ranges.len() - 1;
            end = slice.offset;
        }
        Self { ranges, bucket_of }
    }

    fn view(&self, bucket: usize, flat: &Tensor) -> Tensor {
        let Range { start, end } = self.ranges[bucket];
        flat.narrow(0, start, end - start)
    }

    /// Parameters in each bucket.
    fn sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.ranges.len()];
        self.bucket_of.iter().for_each(|&bucket| sizes[bucket] += 1);
        sizes
    }
}

/// A [`GradientTree`] whose sums travel during backward; for ranks that exchange through host memory.
#[derive(Debug)]
pub struct OverlappedTree {
    plan: Plan,
    trees: Vec<GradientTree>,
    exchange: Exchange,
    /// The gradient of the step's first micro-batch, into which everything else is added.
    first: Option<Tensor>,
}

impl OverlappedTree {
    /// The part of this rank, to be used for one step after another. All ranks call it with equal parameters.
    ///
    /// # Errors
    /// 74 if no thread can be started.
    pub fn new(flat: &FlatParams, ownership: &Ownership, comm: Arc<dyn Comm>) -> Result<Self> {
        let width = flat.values().kind().elt_size_in_bytes() as i64;
        let (least, most) = BUCKET_BYTES;
        Self::with_bucket(flat, ownership, comm, (flat.len() / BUCKETS).clamp(least / width, most / width))
    }

    fn with_bucket(
        flat: &FlatParams,
        ownership: &Ownership,
        comm: Arc<dyn Comm>,
        bucket: i64,
    ) -> Result<Self> {
        let plan = Plan::new(flat.slices(), flat.len(), bucket);
        let tree = |_| GradientTree::new(*ownership, comm.rank());
        let trees = plan.ranges.iter().map(tree).collect();
        Ok(Self { plan, trees, exchange: Exchange::start(comm, *ownership)?, first: None })
    }

    /// Backward of the next owned micro-batch's scalar `loss`. Buckets of the last one are on their way when it returns.
    ///
    /// # Errors
    /// 101 if libtorch cannot differentiate `loss`, or the exchange has ended.
    ///
    /// # Panics
    /// If `index` is not the next one.
    pub fn backward(&mut self, flat: &FlatParams, index: usize, loss: &Tensor) -> Result<()> {
        let Self { plan, trees, exchange, first } = self;
        let is_last = trees.first().is_some_and(|tree| index + 1 == tree.owned().end);
        // Gaps, and parameters that the loss does not depend on, stay zero.
        let gradient = flat.zeros();
        let mut order = InOrder { missing: plan.sizes(), next: 0 };
        let mut sent = Ok(());
        let mut hand_on = |bucket: usize| {
            trees[bucket].push(index, plan.view(bucket, &gradient));
            if is_last && sent.is_ok() {
                sent = trees[bucket].own_sum().map_or(Ok(()), |own| exchange.send(bucket, own));
            }
        };
        shim::backward(loss, flat.parameters(), &mut |parameter, value| {
            tch::no_grad(|| flat.slices()[parameter].view(&gradient).copy_(value));
            order.arrived(plan.bucket_of[parameter], &mut hand_on);
        })?;
        order.finish(&mut hand_on);
        sent?;
        first.get_or_insert(gradient);
        Ok(())
    }

    /// The sum over all micro-batches, on every rank, and makes ready for the next step. Collective.
    ///
    /// # Errors
    /// Those of the transport.
    pub fn finish(&mut self, flat: &FlatParams) -> Result<Tensor> {
        let Self { plan, trees, exchange, first } = self;
        let owns_none = first.is_none();
        let total = first.take().unwrap_or_else(|| flat.zeros());
        if owns_none {
            (0..trees.len()).try_for_each(|bucket| exchange.send(bucket, plan.view(bucket, &total)))?;
        }
        trees.iter_mut().for_each(GradientTree::next_step);
        for _ in 0..trees.len() {
            let (bucket, sum) = exchange.receive()?;
            tch::no_grad(|| plan.view(bucket, &total).copy_(&sum));
        }
        Ok(total)
    }
}

/// Hands buckets on in their order, whatever order gradients arrive in: all ranks must exchange the same one.
struct InOrder {
    /// Gradients that each bucket waits for.
    missing: Vec<usize>,
    next: usize,
}

impl InOrder {
    fn arrived(&mut self, bucket: usize, hand_on: &mut dyn FnMut(usize)) {
        self.missing[bucket] -= 1;
        while self.missing.get(self.next) == Some(&0) {
            hand_on(self.next);
            self.next += 1;
        }
    }

    /// No more gradients come.
    fn finish(self, hand_on: &mut dyn FnMut(usize)) {
        (self.next..self.missing.len()).for_each(hand_on);
    }
}

/// The thread that sums buckets over the ranks, one after another.
#[derive(Debug)]
struct Exchange {
    /// None once dropped, which ends the thread.
    own: Option<Sender<(usize, Tensor)>>,
    sums: Receiver<Result<(usize, Tensor)>>,
    thread: Option<JoinHandle<()>>,
}

impl Exchange {
    fn start(comm: Arc<dyn Comm>, ownership: Ownership) -> Result<Self> {
        let (own, inbox) = channel::<(usize, Tensor)>();
        let (outbox, sums) = channel();
        let thread = std::thread::Builder::new().name("gradients".into()).spawn(move || {
            for (bucket, own) in inbox {
                let _span = trace::numbered("reduce bucket", bucket as u64);
                let sum = HostTree(&*comm).sum(&ownership, own).map(|sum| (bucket, sum));
                if outbox.send(sum).is_err() {
                    return;
                }
            }
        });
        let thread = thread.or_exit(ExitCode::Io, "cannot start the thread for gradients")?;
        Ok(Self { own: Some(own), sums, thread: Some(thread) })
    }

    fn send(&self, bucket: usize, own: Tensor) -> Result<()> {
        let sent = self.own.as_ref().is_some_and(|channel| channel.send((bucket, own)).is_ok());
        if sent { Ok(()) } else { Err(ended()) }
    }

    fn receive(&self) -> Result<(usize, Tensor)> {
        self.sums.recv().map_err(|_| ended())?
    }
}

/// The thread panicked: its message is on standard error already.
fn ended() -> Error {
    Error::new(ExitCode::Bug, "the thread for gradients has ended")
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.own = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Params;
    use crate::layers::Linear;
    use crate::weights::raw_bytes;
    use equipoise_comm::threads;
    use tch::{Device, Kind};

    /// Three layers, one of which the loss never sees, on weights that all ranks share.
    struct Model {
        params: Params,
        layers: [Linear; 3],
    }

    impl Model {
        fn new() -> Self {
            let params = Params::new(3, Kind::Float, Device::Cpu);
            let layer = |name: &str, from, to| Linear::new(&params.root().sub(name), from, to);
            let layers = [layer("a", 5, 7), layer("unused", 7, 9), layer("b", 7, 3)];
            Self { params, layers }
        }

        fn loss(&self, index: usize) -> Tensor {
            let x =
                (Tensor::arange(20, (Kind::Float, Device::Cpu)) * (index as f64 + 0.3)).sin().view([4, 5]);
            let hidden = self.layers[0].forward(&x).tanh();
            (self.layers[2].forward(&hidden).square() * 10f64.powi(index as i32 - 3)).mean(Kind::Float)
        }
    }

    /// Two steps' sums as bytes, at once and overlapped.
    fn sums(comm: Arc<dyn Comm>, micro_batches: usize, bucket: i64) -> [Vec<Vec<u8>>; 2] {
        let model = Model::new();
        let flat = FlatParams::new(&model.params).unwrap();
        let ownership = Ownership::new(micro_batches, comm.size()).unwrap();
        let mut tree = GradientTree::new(ownership, comm.rank());
        let whole = (0..2).map(|_| {
            tree.owned().for_each(|index| tree.push(index, flat.gradient(&model.loss(index))));
            raw_bytes(&tree.finish(&HostTree(&*comm), flat.values()).unwrap())
        });
        let whole = whole.collect();
        let mut overlapped = OverlappedTree::with_bucket(&flat, &ownership, comm.clone(), bucket).unwrap();
        let parts = (0..2).map(|_| {
            ownership
                .of_rank(comm.rank())
                .for_each(|index| overlapped.backward(&flat, index, &model.loss(index)).unwrap());
            raw_bytes(&overlapped.finish(&flat).unwrap())
        });
        [whole, parts.collect()]
    }

    #[test]
    fn overlapped_sums_have_the_bits_of_those_taken_at_once() {
        for micro_batches in [1, 2, 3, 4, 5, 8] {
            for world in Ownership::world_sizes(micro_batches) {
                for bucket in [1, 40, 10_000] {
                    let both = threads::run(world, |comm| sums(Arc::new(comm), micro_batches, bucket));
                    for (rank, [whole, parts]) in both.iter().enumerate() {
                        let place = format!("{micro_batches} micro-batches, rank {rank} of {world}");
                        assert!(whole == parts && whole == &both[0][0], "{place}, bucket {bucket}");
                    }
                }
            }
        }
    }

    #[test]
    fn buckets_cover_the_vector_from_the_end() {
        let flat = FlatParams::new(&Model::new().params).unwrap();
        for bucket in [1, 40, 10_000] {
            let plan = Plan::new(flat.slices(), flat.len(), bucket);
            assert_eq!(plan.ranges[0].end, flat.len());
            assert_eq!(plan.ranges.last().unwrap().start, 0);
            assert!(plan.ranges.windows(2).all(|pair| pair[0].start == pair[1].end));
            assert_eq!(plan.sizes().iter().sum::<usize>(), flat.slices().len());
        }
        assert_eq!(Plan::new(flat.slices(), flat.len(), 1).ranges.len(), flat.slices().len());
    }
}
