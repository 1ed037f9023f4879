//! A thread that prepares micro-batches while the model computes.

use crate::batch::BatchBuilder;
use equipoise_base::{ExitCode, Result, ResultExt, trace};
use equipoise_workplan::Sample;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use tch::Tensor;

/// A micro-batch to prepare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Training step.
    pub step: u64,
    /// Micro-batch within the step.
    pub micro: u64,
    /// Its samples, by slot.
    pub samples: Vec<Sample>,
}

/// A micro-batch on the CPU.
#[derive(Debug)]
pub struct MicroBatch {
    /// What was asked for.
    pub request: Request,
    /// Float images, `[n, c, h, w]`.
    pub images: Tensor,
    /// int64 labels, `[n]`.
    pub labels: Tensor,
}

/// Micro-batches in the order asked for, up to `depth` of them ahead. Dropping it stops the thread.
#[derive(Debug)]
pub struct Loader {
    /// `None` only while dropping: the thread sees the closed channel and ends.
    batches: Option<Receiver<Result<MicroBatch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts preparing what `requests` yields. After an error nothing follows.
    ///
    /// # Errors
    /// 74 when the thread cannot be started.
    pub fn start<I>(builder: BatchBuilder, requests: I, depth: usize) -> Result<Self>
    where
        I: IntoIterator<Item = Request>,
        I::IntoIter: Send + 'static,
    {
        // One more batch is in the making beside those that wait.
        let (sender, receiver) = sync_channel(depth.max(1));
        let requests = requests.into_iter();
        let thread = std::thread::Builder::new()
            .name("loader".into())
            .spawn(move || produce(&builder, requests, &sender))
            .or_exit(ExitCode::Io, "cannot start the loader thread")?;
        Ok(Self { batches: Some(receiver), thread: Some(thread) })
    }
}

fn produce(
    builder: &BatchBuilder,
    requests: impl Iterator<Item = Request>,
    sender: &SyncSender<Result<MicroBatch>>,
) {
    let mut buffer = Vec::new();
    for request in requests {
        let prepared = {
            let _span = trace::numbered("load", request.step);
            builder.tensors(&request.samples, &mut buffer)
        };
        let batch = prepared
            .map_err(|error| error.context(format!("step {}, micro-batch {}", request.step, request.micro)))
            .map(|(images, labels)| MicroBatch { request, images, labels });
        let failed = batch.is_err();
        if sender.send(batch).is_err() || failed {
            return;
        }
    }
}

impl Iterator for Loader {
    type Item = Result<MicroBatch>;

    /// # Panics
    /// If the thread has panicked, with its panic.
    fn next(&mut self) -> Option<Self::Item> {
        if let Some(batch) = self.batches.as_ref().and_then(|batches| batches.recv().ok()) {
            return Some(batch);
        }
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
        None
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread after its last batch was taken concerns nobody any more.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::tests::{builder, samples};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn request(step: u64) -> Request {
        Request { step, micro: 0, samples: samples(step..step + 2) }
    }

    #[test]
    fn order_and_content() {
        let loader = Loader::start(builder(8, 2), (0..4).map(request), 2).unwrap();
        let mut expected = Vec::new();
        let mut steps = 0;
        for (step, batch) in loader.enumerate() {
            let batch = batch.unwrap();
            builder(8, 1).fill(&samples(step as u64..step as u64 + 2), &mut expected).unwrap();
            assert_eq!(Vec::<f32>::try_from(batch.images.flatten(0, -1)).unwrap(), expected);
            assert_eq!(batch.request, request(step as u64));
            steps += 1;
        }
        assert_eq!(steps, 4);
    }

    #[test]
    fn dropping_stops_an_endless_thread_that_ran_ahead_only_so_far() {
        let asked = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&asked);
        let endless = (0..).map(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            request(0)
        });
        let mut loader = Loader::start(builder(8, 1), endless, 2).unwrap();
        loader.next().unwrap().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(loader);
        assert!(asked.load(Ordering::SeqCst) <= 5);
    }

    #[test]
    fn an_error_is_the_last_item() {
        let mut loader = Loader::start(builder(3, 1), [request(0), request(2), request(0)], 4).unwrap();
        assert!(loader.next().unwrap().is_ok());
        let error = loader.next().unwrap().unwrap_err().to_string();
        assert!(error.starts_with("step 2, micro-batch 0: image 3"), "{error}");
        assert!(loader.next().is_none() && loader.next().is_none());
    }

    #[test]
    #[should_panic(expected = "in the requests")]
    fn a_panic_of_the_thread_is_passed_on() {
        let requests = (0..2).map(|step| if step == 0 { request(0) } else { panic!("in the requests") });
        Loader::start(builder(3, 1), requests, 1).unwrap().for_each(drop);
    }
}
