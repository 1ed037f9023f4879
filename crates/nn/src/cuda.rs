//! The little that must be known of a GPU before naming it, asked of the driver itself: tch has no such call, and
//! linking a CUDA library would tie a CPU installation to it.

use std::ffi::{CStr, c_char, c_int, c_void};

/// `cudaDeviceAttr` numbers of the compute capability.
const MAJOR: c_int = 75;
const MINOR: c_int = 76;

/// Name, compute capability and CUDA version of the driver of the `index`-th visible GPU, such as
/// `NVIDIA H200 sm_90 driver 13000`.
///
/// `None` without a driver, or where it does not answer.
pub(crate) fn describe(index: usize) -> Option<String> {
    let driver = Driver::open()?;
    let device = driver.device(index)?;
    let (mut major, mut minor, mut version) = (0, 0, 0);
    let mut name: [c_char; 128] = [0; 128];
    // SAFETY: signatures as in cuda.h; every out pointer outlives its call; `name` stays NUL-terminated because the
    // driver is told one byte less.
    let name = unsafe {
        let get_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int =
            driver.symbol(c"cuDeviceGetName")?;
        let attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int =
            driver.symbol(c"cuDeviceGetAttribute")?;
        let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = driver.symbol(c"cuDriverGetVersion")?;
        let failed = get_name(name.as_mut_ptr(), name.len() as c_int - 1, device) != 0
            || attribute(&mut major, MAJOR, device) != 0
            || attribute(&mut minor, MINOR, device) != 0
            || get_version(&mut version) != 0;
        if failed {
            return None;
        }
        CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
    };
    Some(format!("{name} sm_{major}{minor} driver {version}"))
}

/// What no other GPU has, whatever number it goes by in a process; `None` as for [`describe`].
pub(crate) fn uuid(index: usize) -> Option<[u8; 16]> {
    let driver = Driver::open()?;
    let device = driver.device(index)?;
    let mut uuid = [0; 16];
    // SAFETY: the signature of cuda.h for both names (CUuuid is 16 bytes), and the pointer outlives the call.
    let code = unsafe {
        // The newer one tells the parts of a divided GPU (MIG) apart.
        let get: unsafe extern "C" fn(*mut [u8; 16], c_int) -> c_int =
            driver.symbol(c"cuDeviceGetUuid_v2").or_else(|| driver.symbol(c"cuDeviceGetUuid"))?;
        get(&mut uuid, device)
    };
    (code == 0).then_some(uuid)
}

/// Bytes of the GPU that this thread computes on that are taken, by whomever, and all of them; `None` without a GPU or
/// before its first use. libtorch keeps what it has once taken, so for a process alone this is its peak.
pub(crate) fn memory() -> Option<(u64, u64)> {
    let driver = Driver::open()?;
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: the signature of cuda.h, and both pointers outlive the call.
    let code = unsafe {
        let get: unsafe extern "C" fn(*mut usize, *mut usize) -> c_int = driver.symbol(c"cuMemGetInfo_v2")?;
        get(&mut free, &mut total)
    };
    (code == 0).then_some((total.saturating_sub(free) as u64, total as u64))
}

/// The driver library, kept loaded: unloading it while libtorch uses it would be fatal.
struct Driver(*mut c_void);

impl Driver {
    fn open() -> Option<Self> {
        // SAFETY: loads the driver, whose initialisers have no preconditions.
        let handle = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
        (!handle.is_null()).then_some(Self(handle))
    }

    /// The driver's handle of the `index`-th visible GPU.
    fn device(&self, index: usize) -> Option<c_int> {
        let (mut device, ordinal) = (0, c_int::try_from(index).ok()?);
        // SAFETY: signatures as in cuda.h; the pointer outlives the call.
        unsafe {
            let init: unsafe extern "C" fn(u32) -> c_int = self.symbol(c"cuInit")?;
            let get: unsafe extern "C" fn(*mut c_int, c_int) -> c_int = self.symbol(c"cuDeviceGet")?;
            (init(0) == 0 && get(&mut device, ordinal) == 0).then_some(device)
        }
    }

    /// # Safety
    /// `F` must be the function pointer type of `name`.
    unsafe fn symbol<F: Copy>(&self, name: &CStr) -> Option<F> {
        assert_eq!(size_of::<F>(), size_of::<*mut c_void>(), "F is a function pointer");
        // SAFETY: the handle is open; the caller vouches for the type.
        unsafe {
            let symbol = libc::dlsym(self.0, name.as_ptr());
            (!symbol.is_null()).then(|| std::mem::transmute_copy(&symbol))
        }
    }
}
