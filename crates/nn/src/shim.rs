//! The other side of `csrc/shim.cpp`: safe calls for what tch does not offer.

use equipoise_base::{Error, ExitCode, Result};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// `at::Tensor*`, the pointer inside of a [`Tensor`].
type TensorPtr = *mut c_void;

#[repr(C)]
#[derive(Debug, Default)]
struct AutocastState {
    enabled: c_int,
    dtype: c_int,
}

unsafe extern "C" {
    fn eq_memory_format(input: TensorPtr, channels_last: c_int, output: *mut TensorPtr) -> *mut c_char;
    fn eq_is_channels_last(input: TensorPtr, yes: *mut c_int) -> *mut c_char;
    fn eq_share(
        data: *const c_void,
        sizes: *const i64,
        dims: i64,
        dtype: c_int,
        owner: *const c_void,
        release: extern "C" fn(*const c_void),
        output: *mut TensorPtr,
    ) -> *mut c_char;
    fn eq_pin_memory(input: TensorPtr, output: *mut TensorPtr) -> *mut c_char;
    fn eq_autocast_enter(
        cuda: c_int,
        enabled: c_int,
        dtype: c_int,
        previous: *mut AutocastState,
    ) -> *mut c_char;
    fn eq_autocast_leave(cuda: c_int, previous: *const AutocastState) -> *mut c_char;
    fn eq_set_determinism(deterministic: c_int, tf32: c_int) -> *mut c_char;
    fn eq_nondeterministic_operators(names: *mut *mut c_char) -> *mut c_char;
    fn eq_versions(text: *mut *mut c_char) -> *mut c_char;
    fn eq_cpu_capability(text: *mut *mut c_char) -> *mut c_char;
    fn eq_backward(
        loss: TensorPtr,
        parameters: *const TensorPtr,
        count: i64,
        ready: extern "C" fn(*mut c_void, i64, TensorPtr),
        context: *mut c_void,
    ) -> *mut c_char;
    fn eq_fused_sgd(
        parameters: TensorPtr,
        gradient: TensorPtr,
        buffer: TensorPtr,
        lr: f64,
        momentum: f64,
        weight_decay: f64,
        nesterov: c_int,
        first_step: c_int,
    ) -> *mut c_char;
    fn eq_fused_adamw(
        parameters: TensorPtr,
        gradient: TensorPtr,
        exp_avg: TensorPtr,
        exp_avg_sq: TensorPtr,
        step: TensorPtr,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
}

/// Takes ownership of a string that the shim made with `strdup`.
///
/// # Safety
/// `text` is null or came from `strdup` and is used nowhere else.
unsafe fn take(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: a NUL-terminated string of our own, freed once, by the allocator that made it.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        Some(owned)
    }
}

/// Turns what a shim function returned into a result. What fails here is a call of ours with wrong arguments, or a
/// libtorch that lacks the operation on this device.
fn checked(doing: &str, error: *mut c_char) -> Result<()> {
    // SAFETY: every shim function returns null or a fresh strdup.
    match unsafe { take(error) } {
        None => Ok(()),
        Some(message) => {
            let first = message.lines().next().unwrap_or_default();
            Err(Error::new(ExitCode::Bug, format!("libtorch: {doing}: {first}")))
        }
    }
}

fn text(doing: &str, call: impl FnOnce(*mut *mut c_char) -> *mut c_char) -> Result<String> {
    let mut out = std::ptr::null_mut();
    checked(doing, call(&mut out))?;
    // SAFETY: the call succeeded, so `out` is a fresh strdup.
    Ok(unsafe { take(out) }.unwrap_or_default())
}

/// The C++ side reads through a `const` pointer wherever this is used on a shared reference, except that optimizer
/// steps write the values (not the handle), as every in-place operation of tch does.
fn ptr(tensor: &Tensor) -> TensorPtr {
    tensor.as_ptr().cast_mut().cast()
}

/// [N, C, H, W] with channels-last or row-major strides; a cheap clone if it has them already.
pub(crate) fn memory_format(input: &Tensor, channels_last: bool) -> Result<Tensor> {
    let mut output: TensorPtr = std::ptr::null_mut();
    // SAFETY: `input` outlives the call.
    checked("memory format", unsafe { eq_memory_format(ptr(input), channels_last.into(), &mut output) })?;
    // SAFETY: on success `output` is a new at::Tensor, which the Rust tensor now owns.
    Ok(unsafe { Tensor::from_ptr(output.cast()) })
}

/// Whether operations on this tensor choose channels-last kernels.
pub(crate) fn is_channels_last(input: &Tensor) -> Result<bool> {
    let mut yes = 0;
    // SAFETY: both pointers outlive the call.
    checked("memory format", unsafe { eq_is_channels_last(ptr(input), &mut yes) })?;
    Ok(yes != 0)
}

/// A contiguous tensor of `size` values of `kind` that lies in `bytes[start..]` and keeps them alive.
///
/// # Errors
/// Those of libtorch.
///
/// # Panics
/// If the values do not lie within `bytes` or are not aligned.
pub(crate) fn share(bytes: &Arc<Vec<u8>>, start: usize, size: &[i64], kind: Kind) -> Result<Tensor> {
    extern "C" fn release(owner: *const c_void) {
        // SAFETY: the pointer that `into_raw` gave for this tensor, which has just gone.
        drop(unsafe { Arc::from_raw(owner.cast::<Vec<u8>>()) });
    }
    let length = size.iter().product::<i64>() as usize * kind.elt_size_in_bytes();
    let data = bytes[start..start + length].as_ptr();
    assert!((data as usize).is_multiple_of(kind.elt_size_in_bytes()), "{start} is not aligned for {kind:?}");
    let mut output: TensorPtr = std::ptr::null_mut();
    let (dims, owner) = (size.len() as i64, Arc::into_raw(Arc::clone(bytes)));
    // SAFETY: the values lie within `bytes`, which lives until `release`. After an error the owner is never released.
    let error = unsafe {
        eq_share(data.cast(), size.as_ptr(), dims, kind as c_int, owner.cast(), release, &mut output)
    };
    checked("shared memory", error)?;
    // SAFETY: on success `output` is a new at::Tensor, which the Rust tensor now owns.
    Ok(unsafe { Tensor::from_ptr(output.cast()) })
}

/// A copy in page-locked memory, for which libtorch needs a GPU.
pub(crate) fn pin_memory(input: &Tensor) -> Result<Tensor> {
    let mut output: TensorPtr = std::ptr::null_mut();
    // SAFETY: `input` outlives the call.
    checked("pinned memory", unsafe { eq_pin_memory(ptr(input), &mut output) })?;
    // SAFETY: on success `output` is a new at::Tensor, which the Rust tensor now owns.
    Ok(unsafe { Tensor::from_ptr(output.cast()) })
}

thread_local! {
    /// Whether the innermost [`Autocast`] of this thread casts.
    static AUTOCASTING: Cell<bool> = const { Cell::new(false) };
}

/// Autocasting on this thread until dropped.
#[derive(Debug)]
pub(crate) struct Autocast {
    cuda: c_int,
    previous: AutocastState,
    was_casting: bool,
    /// Autocasting is a property of the thread.
    not_send: PhantomData<*const ()>,
}

impl Autocast {
    /// Operations on `device` run in `kind`, or as their inputs are when `None`.
    pub(crate) fn enter(device: Device, kind: Option<Kind>) -> Result<Self> {
        let cuda = c_int::from(device.is_cuda());
        let mut previous = AutocastState::default();
        let dtype = kind.unwrap_or(Kind::BFloat16) as c_int;
        // SAFETY: `previous` outlives the call; a Kind's discriminant is its c10::ScalarType.
        let error = unsafe { eq_autocast_enter(cuda, kind.is_some().into(), dtype, &mut previous) };
        checked("autocast", error)?;
        let was_casting = AUTOCASTING.replace(kind.is_some());
        Ok(Self { cuda, previous, was_casting, not_send: PhantomData })
    }

    /// Whether operations on this thread are cast.
    pub(crate) fn is_on() -> bool {
        AUTOCASTING.get()
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: `previous` was filled by the matching enter on this thread.
        let error = unsafe { eq_autocast_leave(self.cuda, &self.previous) };
        debug_assert!(checked("autocast", error).is_ok());
        AUTOCASTING.set(self.was_casting);
    }
}

/// See `RuntimeConfig`.
pub(crate) fn set_determinism(deterministic: bool, tf32: bool) -> Result<()> {
    // SAFETY: no pointers; sets flags of libtorch's global context.
    checked("determinism", unsafe { eq_set_determinism(deterministic.into(), tf32.into()) })
}

/// Operators that ran without a deterministic implementation, one per line.
pub(crate) fn nondeterministic_operators() -> Result<String> {
    // SAFETY: the out pointer outlives the call.
    text("nondeterministic operators", |out| unsafe { eq_nondeterministic_operators(out) })
}

/// `key=value` lines.
pub(crate) fn versions() -> Result<String> {
    // SAFETY: the out pointer outlives the call.
    text("versions", |out| unsafe { eq_versions(out) })
}

/// The instruction set that libtorch's kernels use, such as `AVX2`.
pub(crate) fn cpu_capability() -> Result<String> {
    // SAFETY: the out pointer outlives the call.
    text("cpu capability", |out| unsafe { eq_cpu_capability(out) })
}

/// Gradients of a scalar `loss` at `parameters`, handed to `ready` with their position as soon as each is known, those
/// of the last layers first. Parameters that `loss` does not depend on are left out.
pub(crate) fn backward(
    loss: &Tensor,
    parameters: &[Tensor],
    ready: &mut dyn FnMut(usize, &Tensor),
) -> Result<()> {
    type Ready<'a> = &'a mut dyn FnMut(usize, &Tensor);
    extern "C" fn call(context: *mut c_void, parameter: i64, gradient: TensorPtr) {
        // SAFETY: `context` is the `ready` below, which outlives the call and is used by one thread at a time: backward
        // of a CPU runs on the caller's, that of a GPU on its one thread while the caller waits. The gradient is
        // borrowed: its handle belongs to autograd and is not dropped here.
        unsafe {
            let ready = &mut *context.cast::<Ready<'_>>();
            let borrowed = std::mem::ManuallyDrop::new(Tensor::from_ptr(gradient.cast()));
            ready(parameter as usize, &borrowed);
        }
    }
    let mut ready: Ready<'_> = ready;
    let pointers: Vec<TensorPtr> = parameters.iter().map(ptr).collect();
    let context = (&raw mut ready).cast::<c_void>();
    // SAFETY: everything outlives the call; `call` gets back the context that it is written for.
    let error = unsafe { eq_backward(ptr(loss), pointers.as_ptr(), pointers.len() as i64, call, context) };
    checked("backward", error)
}

/// Hyper-parameters of [`fused_sgd`], as in torch.optim.SGD.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SgdStep {
    pub lr: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub nesterov: bool,
    /// The buffer becomes the gradient instead of being multiplied by the momentum.
    pub first: bool,
}

/// One step in place, over the parameters once.
pub(crate) fn fused_sgd(
    parameters: &Tensor,
    gradient: &Tensor,
    buffer: &Tensor,
    step: SgdStep,
) -> Result<()> {
    let SgdStep { lr, momentum, weight_decay, nesterov, first } = step;
    let (p, g, b) = (ptr(parameters), ptr(gradient), ptr(buffer));
    // SAFETY: the tensors outlive the call.
    let error = unsafe { eq_fused_sgd(p, g, b, lr, momentum, weight_decay, nesterov.into(), first.into()) };
    checked("SGD step", error)
}

/// Hyper-parameters of [`fused_adamw`], as in torch.optim.AdamW.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamWStep {
    pub lr: f64,
    pub betas: (f64, f64),
    pub weight_decay: f64,
    pub eps: f64,
}

/// One step in place, over the parameters once. `state` is (exp_avg, exp_avg_sq, number of this step from 1).
pub(crate) fn fused_adamw(
    parameters: &Tensor,
    gradient: &Tensor,
    state: (&Tensor, &Tensor, &Tensor),
    step: AdamWStep,
) -> Result<()> {
    let AdamWStep { lr, betas: (beta1, beta2), weight_decay, eps } = step;
    let (p, g, m, v, t) = (ptr(parameters), ptr(gradient), ptr(state.0), ptr(state.1), ptr(state.2));
    // SAFETY: the tensors outlive the call.
    checked("AdamW step", unsafe { eq_fused_adamw(p, g, m, v, t, lr, beta1, beta2, weight_decay, eps) })
}
