//! NCCL with one rank on one GPU: what the test kit's library cannot show.

use equipoise_base::{Error, ExitCode, Result, ensure};
use equipoise_comm_nccl::{Monitor, NcclGroup, Stream, UniqueId, version};
use equipoise_nn::runtime;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Floats to reduce: 100 MB, about a ResNet-50's gradient.
const COUNT: i64 = 25_000_000;

/// Loads, reduces, gathers, looks for errors and leaves.
///
/// # Errors
/// 78 without NCCL or a GPU, 74 if NCCL fails, 1 if it computes something else.
pub fn run() -> Result<Value> {
    let Device::Cuda(index) = runtime::device() else {
        return Err(Error::config("NCCL needs a GPU: --device cuda"));
    };
    let (number, origin) = version()?;
    let (nonce, start) = (1, Instant::now());
    let id = UniqueId::from_bytes(&UniqueId::new(nonce)?.to_bytes(), nonce)?;
    let group = Arc::new(NcclGroup::new(0, 1, &id, index)?);
    let init_ms = 1e3 * start.elapsed().as_secs_f64();
    let failed = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&failed);
    let monitor = Monitor::start(Arc::clone(&group), move |_| flag.store(true, Ordering::SeqCst))?;
    // Queued right behind the kernel that makes the values, and read by one right behind it: on one stream.
    let values = Tensor::arange(COUNT, (Kind::Float, runtime::device())).remainder(1000.);
    let expected = values.copy();
    let gathered = values.zeros_like();
    // SAFETY: COUNT floats each, alive to the end, used in the order of the stream.
    unsafe {
        group.all_reduce_sum_f32(values.data_ptr().cast(), COUNT as usize, Stream::default())?;
        let (send, receive) = (values.data_ptr().cast(), gathered.data_ptr().cast());
        group.all_gather_f32(send, receive, COUNT as usize, Stream::default())?;
    }
    let right = values.equal(&expected) && gathered.equal(&expected);
    // A few rounds of the monitor.
    std::thread::sleep(Duration::from_millis(300));
    group.check()?;
    ensure!(!failed.load(Ordering::SeqCst), Io, "the monitor saw an asynchronous error");
    ensure!(right, CheckFailed, "a sum over one rank is something else than its part");
    drop(monitor);
    Arc::into_inner(group).ok_or_else(|| Error::new(ExitCode::Bug, "the group is in use"))?.close()?;
    Ok(json!({ "bench": "nccl", "version": number, "origin": origin, "init_ms": init_ms, "ranks": 1 }))
}
