//! The finished file, in the memory that HDF5 made it in.

use super::{check, locked};
use crate::guard::{GUARD_LEN, Guard};
use crate::{Kind, lookup3};
use equipoise_base::{Result, ensure};
use hdf5::File;
use hdf5_sys::{h5f, h5p::H5P_DEFAULT};
use std::ffi::c_void;
use std::fmt;
use std::ops::Deref;
use std::ptr::{self, NonNull};

/// The bytes of a finished file, guard included. They are not copied: a shard may have a GiB.
pub struct FileImage {
    bytes: NonNull<[u8]>,
    /// Owns the bytes. HDF5 touches them again only when it closes the file.
    _file: File,
}

// SAFETY: the bytes are read only, by whoever holds the image, and freed with the file, whose binding takes the lock of
// HDF5 on any thread.
unsafe impl Send for FileImage {}
// SAFETY: as above.
unsafe impl Sync for FileImage {}

impl FileImage {
    /// Finishes a file of HDF5's memory driver that has a user block of [`GUARD_LEN`] bytes, where the guard goes.
    pub(super) fn of(file: File, kind: Kind) -> Result<Self> {
        let bytes = memory(&file).map_err(|error| super::build_error(kind, "the file image", error))?;
        // SAFETY: the file is flushed and nobody else has it, so nothing else reads or writes these bytes.
        let (guard, body) = unsafe { &mut *bytes.as_ptr() }.split_at_mut(GUARD_LEN);
        ensure!(
            lookup3::seal_superblock(body),
            Bug,
            "HDF5 {:?} wrote a superblock of unknown layout",
            hdf5::library_version()
        );
        guard.copy_from_slice(&Guard::of(kind, body).render());
        Ok(Self { bytes, _file: file })
    }
}

/// Where HDF5 has the file, user block included, with everything that was written.
fn memory(file: &File) -> hdf5::Result<NonNull<[u8]>> {
    file.flush()?;
    // SAFETY: a null buffer asks for the length of the HDF5 part. The handle of the memory driver is the place of the
    // pointer to its bytes, of which there are at least as many as the file has.
    locked(|| unsafe {
        let length = h5f::H5Fget_file_image(file.id(), ptr::null_mut(), 0);
        let mut handle: *mut c_void = ptr::null_mut();
        let status = h5f::H5Fget_vfd_handle(file.id(), H5P_DEFAULT, &mut handle);
        check(if length < 0 || handle.is_null() { -1 } else { status })?;
        let start = NonNull::new(*handle.cast::<*mut u8>());
        let bytes = start.map(|start| NonNull::slice_from_raw_parts(start, GUARD_LEN + length as usize));
        bytes.ok_or_else(|| hdf5::Error::from("the memory driver has no memory"))
    })
}

impl Deref for FileImage {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: they live as long as the file, and nobody writes them.
        unsafe { self.bytes.as_ref() }
    }
}

impl AsRef<[u8]> for FileImage {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for FileImage {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Debug for FileImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a file of {} bytes", self.len())
    }
}
