//! Finding and calling the NCCL library.

use equipoise_base::{Error, Result, bail};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::OnceLock;

/// Names the library to load, and no other is tried.
pub const VARIABLE: &str = "EQUIPOISE_NCCL_LIB";

/// `ncclSuccess`.
const SUCCESS: c_int = 0;
/// `ncclInProgress`: no error.
const IN_PROGRESS: c_int = 7;
/// `ncclFloat32` of `ncclDataType_t`.
pub(crate) const FLOAT32: c_int = 7;
/// `ncclSum` of `ncclRedOp_t`.
pub(crate) const SUM: c_int = 0;

/// `ncclUniqueId`, passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawId(pub(crate) [u8; RAW_ID_BYTES]);

/// `NCCL_UNIQUE_ID_BYTES`.
pub(crate) const RAW_ID_BYTES: usize = 128;

/// `ncclComm_t`.
pub(crate) type RawComm = *mut c_void;

macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The functions used, with the signatures of nccl.h and cuda_runtime_api.h (stable since NCCL 2.4).
        pub(crate) struct Library {
            $(pub(crate) $field: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// Where the library came from.
            origin: String,
        }

        impl Library {
            /// Resolves all symbols; the error is the name of the one that is missing.
            fn resolve(handle: *mut c_void, origin: String) -> std::result::Result<Self, &'static str> {
                Ok(Self {
                    $($field: {
                        let address = symbol(handle, $symbol).ok_or($symbol)?;
                        // SAFETY: the symbol of this name has this signature in every NCCL 2.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> $result>(address)
                        }
                    },)*
                    origin,
                })
            }
        }
    };
}

functions! {
    get_version = "ncclGetVersion": fn(*mut c_int) -> c_int;
    get_error_string = "ncclGetErrorString": fn(c_int) -> *const c_char;
    get_unique_id = "ncclGetUniqueId": fn(*mut RawId) -> c_int;
    comm_init_rank = "ncclCommInitRank": fn(*mut RawComm, c_int, RawId, c_int) -> c_int;
    comm_get_async_error = "ncclCommGetAsyncError": fn(RawComm, *mut c_int) -> c_int;
    comm_abort = "ncclCommAbort": fn(RawComm) -> c_int;
    comm_destroy = "ncclCommDestroy": fn(RawComm) -> c_int;
    all_reduce = "ncclAllReduce":
        fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, *mut c_void) -> c_int;
    reduce_scatter = "ncclReduceScatter":
        fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, *mut c_void) -> c_int;
    all_gather = "ncclAllGather": fn(*const c_void, *mut c_void, usize, c_int, RawComm, *mut c_void) -> c_int;
    set_device = "cudaSetDevice": fn(c_int) -> c_int;
}

/// True if NCCL can be loaded on this machine.
pub fn available() -> bool {
    Library::get().is_ok()
}

/// NCCL's version, as major * 10000 + minor * 100 + patch, and where it was loaded from.
///
/// # Errors
/// Configuration: NCCL cannot be loaded.
pub fn version() -> Result<(u32, String)> {
    let library = Library::get()?;
    let mut version = 0;
    // SAFETY: the pointer is valid for the call.
    library.check("ncclGetVersion", unsafe { (library.get_version)(&mut version) })?;
    Ok((version.unsigned_abs(), library.origin.clone()))
}

impl Library {
    /// The library, loaded at the first call; the outcome stays for the life of the process.
    pub(crate) fn get() -> Result<&'static Self> {
        static LIBRARY: OnceLock<std::result::Result<Library, String>> = OnceLock::new();
        LIBRARY
            .get_or_init(|| Library::load(std::env::var_os(VARIABLE).as_deref().map(Path::new)))
            .as_ref()
            .map_err(|why| Error::config(format!("NCCL cannot be loaded: {why}")).next("equipoise doctor"))
    }

    /// The named library alone, or the first that serves: what libtorch_cuda brought into the process (one NCCL in
    /// it, and no search path to get wrong), then `libnccl.so.2`, then `libnccl.so`.
    fn load(named: Option<&Path>) -> std::result::Result<Self, String> {
        if let Some(path) = named {
            let shown = format!("{VARIABLE}={}", path.display());
            let handle = open(&path.display().to_string()).map_err(|why| format!("{shown}: {why}"))?;
            return Self::resolve(handle, shown.clone())
                .map_err(|symbol| format!("{shown}: it lacks {symbol}"));
        }
        if let Ok(library) = Self::resolve(libc::RTLD_DEFAULT, "loaded with libtorch_cuda".into()) {
            return Ok(library);
        }
        let mut tried = vec!["not in this process (libtorch_cuda is not loaded)".to_string()];
        for name in ["libnccl.so.2", "libnccl.so"] {
            match open(name).map(|handle| Self::resolve(handle, name.into())) {
                Ok(Ok(library)) => return Ok(library),
                Ok(Err(symbol)) => tried.push(format!("{name} lacks {symbol}")),
                Err(why) => tried.push(why),
            }
        }
        Err(format!("{}; set {VARIABLE} to its path", tried.join("; ")))
    }

    /// Turns a result code into an error that names the call.
    pub(crate) fn check(&self, call: &str, code: c_int) -> Result<()> {
        if matches!(code, SUCCESS | IN_PROGRESS) {
            return Ok(());
        }
        // SAFETY: NCCL returns a static string for any code.
        let text = unsafe { CStr::from_ptr((self.get_error_string)(code)) };
        bail!(Io, "{call}: {} (NCCL error {code}); NCCL_DEBUG=WARN tells more", text.to_string_lossy())
    }
}

fn open(name: &str) -> std::result::Result<*mut c_void, String> {
    let path = CString::new(name).map_err(|_| "the path holds a zero byte".to_string())?;
    // SAFETY: the string is valid; the library's initializers are trusted as those of any linked library.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: dlerror returns a valid string after a failure, or null.
    let why = unsafe { libc::dlerror() };
    if why.is_null() {
        return Err(format!("{name}: unknown reason"));
    }
    // SAFETY: as above.
    Err(unsafe { CStr::from_ptr(why) }.to_string_lossy().into_owned())
}

/// Looks in the library, then in the whole process: the CUDA runtime is a library of its own.
fn symbol(handle: *mut c_void, name: &str) -> Option<*mut c_void> {
    let name = CString::new(name).ok()?;
    let places = [handle, libc::RTLD_DEFAULT];
    // SAFETY: handle and string are valid.
    places
        .into_iter()
        .map(|place| unsafe { libc::dlsym(place, name.as_ptr()) })
        .find(|address| !address.is_null())
}
