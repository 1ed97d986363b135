//! Bundles on disk: opening one checks that all that its manifest lists is there and unaltered.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result, Status};
use crate::manifest::{FileInfo, Manifest, MANIFEST};
use crate::messages::{joined, quoted};

/// How thoroughly the files of a bundle are compared with the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Names, sizes and digests.
    Hashes,
    /// Names and sizes only, which trusts the disk.
    Sizes,
}

/// Size and time of modification of a file; a write changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    /// The stamp of a file.
    pub fn of(state: &Metadata) -> Stamp {
        Stamp { size: state.size(), seconds: state.mtime(), nanoseconds: state.mtime_nsec() }
    }
}

/// A folder of graphs, tokenizer, probe and manifest that has been checked.
#[derive(Debug)]
pub struct Bundle {
    /// The folder.
    pub path: PathBuf,
    /// The manifest, decoded.
    pub manifest: Manifest,
    /// The text of the manifest.
    pub manifest_json: String,
    stamps: Vec<Stamp>,
}

impl Bundle {
    /// Opens the bundle in a folder.
    pub fn open(folder: &Path, check: Check) -> Result<Bundle> {
        let place = folder.join(MANIFEST);
        match fs::metadata(folder) {
            Ok(state) if state.is_dir() => {}
            Err(error) if !is_absence(&error) => return Err(unreadable(&place, &error)),
            found => {
                let state = if found.is_ok() { "is a file" } else { "does not exist" };
                let message =
                    format!("{} {state}; give a bundle's folder, as 'fgclip-rt export' makes it.", folder.display());
                return Err(Error::new(Status::BundleMissing, message));
            }
        }
        let text = fs::read(&place).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::new(
                Status::BundleMissing,
                format!(
                    "{} has no {MANIFEST}, so it is no bundle; make one with 'fgclip-rt export'.",
                    folder.display()
                ),
            ),
            _ => unreadable(&place, &error),
        })?;
        let manifest = Manifest::decode(&text, &place.display().to_string())?;
        let manifest_json = String::from_utf8(text).expect("JSON is UTF-8");
        let mut bundle = Bundle { path: folder.to_owned(), manifest, manifest_json, stamps: Vec::new() };
        bundle.stamps = bundle.check_files(check)?;
        Ok(bundle)
    }

    /// Path of one of the bundle's files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Bytes of one of the bundle's files.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.file(name);
        fs::read(&path).map_err(|error| unreadable(&path, &error))
    }

    /// The precision of this name, or the first one; refuses one that no graph was exported in.
    pub fn precision(&self, name: Option<&str>) -> Result<String> {
        let available = self.manifest.precisions();
        let Some(name) = name else { return Ok(available[0].to_owned()) };
        if available.contains(&name) {
            return Ok(name.to_owned());
        }
        let message = format!("this bundle has no precision {}; choose from {}.", quoted(name), joined(available));
        Err(Error::new(Status::PrecisionMissing, message))
    }

    /// Makes sure that this is still the bundle that was opened: graphs are read when they are first needed.
    ///
    /// A file is read again only if its size or its time of modification is another than when the bundle was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        let same_manifest = fs::read(self.file(MANIFEST)).is_ok_and(|text| text == self.manifest_json.as_bytes());
        let mut files = self.manifest.files.iter().zip(&self.stamps);
        if same_manifest && files.all(|((name, info), stamp)| self.is_unchanged(name, info, *stamp)) {
            return Ok(());
        }
        let message =
            format!("{} was replaced, changed or removed since it was opened; load it again.", self.path.display());
        Err(Error::new(Status::BundleReplaced, message))
    }

    fn is_unchanged(&self, name: &str, info: &FileInfo, stamp: Stamp) -> bool {
        let path = self.file(name);
        let Ok(state) = fs::metadata(&path) else { return false };
        Stamp::of(&state) == stamp || holds(&path, &state, info)
    }

    fn check_files(&self, check: Check) -> Result<Vec<Stamp>> {
        self.manifest.files.iter().map(|(name, info)| self.check_file(name, info, check)).collect()
    }

    /// Compares a file with what is known of it, and gives its stamp.
    pub fn check_file(&self, name: &str, info: &FileInfo, check: Check) -> Result<Stamp> {
        let path = self.file(name);
        let altered = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Error::new(
                Status::BundleIncomplete,
                format!("{} lacks {name}; copy the bundle again, or export it again.", self.path.display()),
            ),
            _ => unreadable(&path, &error),
        };
        let state = fs::metadata(&path).map_err(altered)?;
        // Whoever opens a pipe waits for a writer.
        let same = state.is_file()
            && state.size() == info.size
            && (check == Check::Sizes || sha256(&path).map_err(altered)? == info.sha256);
        if same {
            return Ok(Stamp::of(&state));
        }
        let message =
            format!("{} is not the file that was exported; copy the bundle again, or export it again.", path.display());
        Err(Error::new(Status::BundleAltered, message))
    }
}

/// Whether an error means that nothing has the name.
fn is_absence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP))
}

/// Whether a file holds what the manifest says, whatever its times are.
pub fn holds(path: &Path, state: &Metadata, info: &FileInfo) -> bool {
    state.size() == info.size && sha256(path).is_ok_and(|digest| digest == info.sha256)
}

/// The error that a file cannot be read.
pub fn unreadable(path: &Path, error: &io::Error) -> Error {
    let message = format!("{} cannot be read ({}); check its permissions.", path.display(), reason(error));
    Error::new(Status::BundleUnreadable, message)
}

/// The system's words for an error, without its number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut chunk = vec![0; 1 << 18];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            size => digest.update(&chunk[..size]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
