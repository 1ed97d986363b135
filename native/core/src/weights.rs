//! Files of weights, mapped once for all graphs of a model and watched for writes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{Mmap, UncheckedAdvice};

use crate::bundle::{holds, unreadable, Bundle, Stamp};
use crate::error::{Error, Result, Status};
use crate::manifest::FileInfo;

/// A file that is part of a running model's memory: who writes into it changes the model's numbers.
///
/// If the file is cut, the process ends at its next access to the lost bytes. If another file takes its name, it stays
/// whole for as long as it is mapped.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    info: FileInfo,
    // The inode that is mapped, whatever the path leads to later.
    file: File,
    stamp: Mutex<Stamp>,
    map: Mmap,
}

impl Mapped {
    fn open(path: PathBuf, info: FileInfo) -> Result<Mapped> {
        let opened = File::open(&path).and_then(|file| {
            // SAFETY: the file is only read, and `check` tells whether another process has written into it.
            let map = unsafe { Mmap::map(&file)? };
            Ok((Stamp::of(&file.metadata()?), file, map))
        });
        let (stamp, file, map) = opened.map_err(|error| unreadable(&path, &error))?;
        Ok(Mapped { path, info, file, stamp: Mutex::new(stamp), map })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Makes sure that nobody has written into the file; this takes a microsecond, unless its times were changed.
    fn check(&self) -> Result<()> {
        let mut stamp = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.file.metadata();
        if let Ok(state) = state {
            let now = Stamp::of(&state);
            if now == *stamp {
                return Ok(());
            }
            let same_file =
                fs::metadata(&self.path).is_ok_and(|other| (other.dev(), other.ino()) == (state.dev(), state.ino()));
            if same_file && holds(&self.path, &state, &self.info) {
                *stamp = now;
                return Ok(());
            }
        }
        let message = format!(
            "{} was changed while its model was in use; load the model again, and replace a bundle by renaming its \
             folder.",
            self.path.display()
        );
        Err(Error::new(Status::BundleReplaced, message))
    }
}

/// The mapped files of one model.
#[derive(Debug, Default)]
pub struct Weights {
    files: Mutex<HashMap<String, Arc<Mapped>>>,
}

impl Weights {
    /// A file of a bundle, mapped when it is first asked for; `graph` is the file that names it, for messages.
    pub fn file(&self, bundle: &Bundle, location: &str, graph: &str) -> Result<Arc<Mapped>> {
        let Some(info) = bundle.manifest.files.get(location) else {
            let path = bundle.file(graph);
            let message = format!(
                "{} reads {location}, which the manifest does not list; export the bundle again.",
                path.display()
            );
            return Err(Error::new(Status::BundleInvalid, message));
        };
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mapped) = files.get(location) {
            return Ok(mapped.clone());
        }
        let mapped = Arc::new(Mapped::open(bundle.file(location), info.clone())?);
        files.insert(location.to_owned(), mapped.clone());
        Ok(mapped)
    }

    /// Gives back the pages that were read, once a session has packed its own copies of most weights. The rest is mapped
    /// anew when a run needs it.
    pub fn release(&self) {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files.values() {
            // SAFETY: the pages are those of a file that is only read, so they come back as they were.
            let _ = unsafe { file.map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }

    /// Makes sure that nobody has written into a file since it was mapped.
    pub fn check(&self) -> Result<()> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.values().try_for_each(|file| file.check())
    }
}
