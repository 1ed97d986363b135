//! libonnxruntime: found and opened when the first model is, once for the process, and never closed.
//!
//! It is not linked: a linked symbol is versioned and would tie this library to one release. Its environment is never
//! released, because releasing it at exit crashes beside other users of CUDA (onnxruntime #24579, #21207).

use std::env;
use std::error::Error as _;
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut, NonNull};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use ort_sys::{
    OrtAllocatorType, OrtApi, OrtApiBase, OrtEnv, OrtLoggingFunction, OrtLoggingLevel, OrtMemType, OrtMemoryInfo,
    OrtStatus, OrtStatusPtr,
};

use crate::error::{Error, Result, Status};
use crate::exit;
use crate::messages::shortened;

/// The lowest version of onnxruntime's table of functions that has what we call.
pub const API: u32 = 22;
/// Environment variable with the path of a libonnxruntime.
pub const VARIABLE: &str = "FGCLIP_RT_ONNXRUNTIME";

/// Environment variable by which onnxruntime 1.29 and later do not report their use to Microsoft.
const TELEMETRY: &str = "ORT_DISABLE_TELEMETRY";

/// An ONNX model of one node, y = Identity(x) of one float.
const NOTHING: &[u8] =
    b"\x08\x08:7\n\x10\n\x01x\x12\x01y\"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\
    \x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\0\x10\x11";

/// Severity of onnxruntime's messages from which on they are passed to a log; fatal ones come with an error anyway.
const WARNINGS: c_int = 2;
const FATAL: c_int = 4;

/// The opened library.
#[derive(Debug)]
pub struct Runtime {
    /// Its table of functions.
    pub api: &'static OrtApi,
    /// Its environment.
    pub env: NonNull<OrtEnv>,
    /// The memory of the CPU, in which all our tensors lie.
    pub memory: NonNull<OrtMemoryInfo>,
    /// Its version, such as `1.22.0`.
    pub version: String,
    /// Its path, as far as the system tells it.
    pub path: String,
    /// Why it was taken, as the end of a sentence.
    pub why: &'static str,
}

// SAFETY: the table is constant, and onnxruntime's functions on the environment and the memory's description may be
// called by several threads.
unsafe impl Send for Runtime {}
unsafe impl Sync for Runtime {}

/// An error of onnxruntime.
#[derive(Debug)]
pub struct Fault {
    /// Its code, which may be one that no header of ours knows.
    pub code: i32,
    /// Its message.
    pub message: String,
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static OPENING: Mutex<()> = Mutex::new(());
/// The process that opened the library; 0 if none has.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// Receives onnxruntime's messages: severity (2 warning, 3 error, 4 fatal) and text.
pub type Log = Box<dyn Fn(i32, &CStr) + Send + Sync>;

static LOG: RwLock<Option<Log>> = RwLock::new(None);

/// Has onnxruntime's messages passed to `log`; None drops them, as at first.
pub fn set_log(log: Option<Log>) {
    *LOG.write().unwrap_or_else(PoisonError::into_inner) = log;
}

/// The severity from which on a session that is opened now sends messages.
pub fn log_severity() -> c_int {
    let has_log = LOG.read().unwrap_or_else(PoisonError::into_inner).is_some();
    if has_log {
        WARNINGS
    } else {
        FATAL
    }
}

/// The library of this process, opened if none is open yet.
///
/// `path` names a libonnxruntime; None looks for one. A process has one: another path later is refused.
pub fn open(path: Option<&Path>) -> Result<&'static Runtime> {
    let opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        check_same(runtime, path)?;
        return Ok(runtime);
    }
    let runtime = find(path)?;
    OWNER.store(process(), Ordering::SeqCst);
    drop(opening);
    let runtime = RUNTIME.get_or_init(|| runtime);
    runtime.open_nothing();
    exit::watch();
    Ok(runtime)
}

/// The library, if one is open.
pub fn opened() -> Option<&'static Runtime> {
    RUNTIME.get()
}

/// Whether this process was forked from the one that opened the library: its threads did not come along.
pub fn forked() -> bool {
    let owner = OWNER.load(Ordering::SeqCst);
    owner != 0 && owner != process()
}

fn process() -> i32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::getpid() }
}

fn check_same(runtime: &Runtime, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if real(path) == real(Path::new(&runtime.path)) {
        return Ok(());
    }
    let message = format!(
        "this process has opened {} already, and it can have only one libonnxruntime; leave the option onnxruntime out.",
        runtime.path
    );
    Err(Error::new(Status::ArgumentInvalid, message))
}

/// A place to look, and why a library there is taken.
struct Candidate {
    path: PathBuf,
    why: &'static str,
    /// Whether somebody named it, so that no other is taken if it fails.
    named: bool,
}

fn find(path: Option<&Path>) -> Result<Runtime> {
    let mut tried = Vec::new();
    for candidate in candidates(path) {
        match load(&candidate) {
            Ok(runtime) => return Ok(runtime),
            Err(fault) => tried.push(fault),
        }
        if candidate.named {
            break;
        }
    }
    let message = format!(
        "no libonnxruntime of version 1.{API} or later was found ({}); install onnxruntime, and name its library in \
         the option onnxruntime or in {VARIABLE}.",
        tried.join("; ")
    );
    Err(Error::new(Status::RuntimeMissing, message))
}

fn candidates(path: Option<&Path>) -> Vec<Candidate> {
    if let Some(path) = path {
        return vec![Candidate { path: path.into(), why: "the option onnxruntime names it", named: true }];
    }
    if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return vec![Candidate { path: path.into(), why: "FGCLIP_RT_ONNXRUNTIME names it", named: true }];
    }
    let mut found: Vec<Candidate> = loaded_images()
        .into_iter()
        .map(|path| Candidate { path, why: "this process had loaded it", named: false })
        .collect();
    if let Some(folder) = own_folder() {
        found.extend(libraries_in(&folder).into_iter().map(|path| Candidate {
            path,
            why: "it lies beside this library",
            named: false,
        }));
    }
    for name in ["libonnxruntime.so.1", "libonnxruntime.so"] {
        found.push(Candidate { path: name.into(), why: "the loader found it by its name", named: false });
    }
    found
}

/// Opens a library and its environment; an error is part of a sentence.
fn load(candidate: &Candidate) -> std::result::Result<Runtime, String> {
    let path = candidate.path.display();
    if env::var_os(TELEMETRY).is_none() {
        // Its function for that takes an environment, which has begun to report by then.
        // SAFETY: the header says that the environment is changed here, if the caller has not set the variable.
        unsafe { env::set_var(TELEMETRY, "1") };
    }
    // SAFETY: a library's initialisers run; it is onnxruntime, or what the caller named as such.
    let library = unsafe { Library::open(Some(&candidate.path), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|error| {
        // The error says that it failed, and its source what the loader said.
        let said = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        let said = said.strip_prefix(&format!("{path}: ")).unwrap_or(&said);
        format!("{path}: {}", shortened(said, 200))
    })?;
    // SAFETY: the symbol has this type in every version of onnxruntime.
    let base = unsafe {
        let get = library.get::<unsafe extern "system" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0");
        let get = get.map_err(|_| format!("{path}: it has no OrtGetApiBase"))?;
        get().as_ref().ok_or_else(|| format!("{path}: its OrtGetApiBase gives nothing"))?
    };
    // SAFETY: both functions take what their types say; the text lives as long as the library.
    let (version, api) = unsafe {
        let version = CStr::from_ptr((base.GetVersionString)()).to_string_lossy().into_owned();
        (version, (base.GetApi)(API).as_ref())
    };
    let api = api.ok_or_else(|| format!("{path}: its version is {version}"))?;
    let where_it_is = image_of(base as *const OrtApiBase as *const c_void)
        .unwrap_or_else(|| candidate.path.to_string_lossy().into_owned());
    let (env, memory) = prepare(api).map_err(|fault| format!("{path}: {}", fault.message))?;
    // It stays for as long as the process does.
    std::mem::forget(library);
    Ok(Runtime { api, env, memory, version, path: where_it_is, why: candidate.why })
}

fn prepare(api: &OrtApi) -> std::result::Result<(NonNull<OrtEnv>, NonNull<OrtMemoryInfo>), Fault> {
    let mut env = null_mut();
    let mut memory = null_mut();
    // SAFETY: all pointers are valid for the calls. The logger has the type that onnxruntime calls, with a plain number
    // for the enum, which may come to have values that ours lacks.
    unsafe {
        let logger: OrtLoggingFunction = std::mem::transmute::<Logger, OrtLoggingFunction>(log);
        let level = OrtLoggingLevel::ORT_LOGGING_LEVEL_WARNING;
        check(api, (api.CreateEnvWithCustomLogger)(logger, null_mut(), level, c"fgclip_rt".as_ptr(), &mut env))?;
        check(api, (api.DisableTelemetryEvents)(env))?;
        let (allocator, kind) = (OrtAllocatorType::OrtDeviceAllocator, OrtMemType::OrtMemTypeDefault);
        check(api, (api.CreateCpuMemoryInfo)(allocator, kind, &mut memory))?;
    }
    let missing = || Fault { code: 1, message: "it made no environment".into() };
    Ok((NonNull::new(env).ok_or_else(missing)?, NonNull::new(memory).ok_or_else(missing)?))
}

type Logger = unsafe extern "system" fn(*mut c_void, i32, *const c_char, *const c_char, *const c_char, *const c_char);

/// Passes a message on, or drops it. onnxruntime's threads call this, so a panic of the receiver must end here.
unsafe extern "system" fn log(
    _: *mut c_void,
    severity: i32,
    _category: *const c_char,
    _id: *const c_char,
    _location: *const c_char,
    message: *const c_char,
) {
    let _ = std::panic::catch_unwind(|| {
        let log = LOG.read().unwrap_or_else(PoisonError::into_inner);
        if let (Some(log), false) = (log.as_ref(), message.is_null()) {
            // SAFETY: onnxruntime passes a text that ends in NUL.
            log(severity, unsafe { CStr::from_ptr(message) });
        }
    });
}

/// Turns a status of onnxruntime into a result, and releases it.
///
/// # Safety
/// `status` must come from a function of `api`, and not have been released.
pub unsafe fn check(api: &OrtApi, status: OrtStatusPtr) -> std::result::Result<(), Fault> {
    let Some(status) = NonNull::new(status.0) else { return Ok(()) };
    // SAFETY: as the caller promises. The code is read as a number, because the enum lacks the codes of later versions.
    unsafe {
        let get_code: unsafe extern "system" fn(*const OrtStatus) -> i32 = std::mem::transmute(api.GetErrorCode);
        let code = get_code(status.as_ptr());
        let message = CStr::from_ptr((api.GetErrorMessage)(status.as_ptr())).to_string_lossy().into_owned();
        (api.ReleaseStatus)(status.as_ptr());
        Err(Fault { code, message })
    }
}

impl Runtime {
    /// [`check`] with this library's table.
    ///
    /// # Safety
    /// As for [`check`].
    pub unsafe fn check(&self, status: OrtStatusPtr) -> std::result::Result<(), Fault> {
        // SAFETY: as the caller promises.
        unsafe { check(self.api, status) }
    }

    /// Opens a graph that does nothing, and closes it: most of onnxruntime's static objects are made by the first, and
    /// an exit must find them made. A failure will show again with the first real graph.
    fn open_nothing(&self) {
        let (api, model) = (self.api, NOTHING.as_ptr().cast());
        let (mut options, mut session) = (null_mut(), null_mut());
        // SAFETY: all pointers are valid for the calls; what was made is released once, and NULL is nothing to release.
        unsafe {
            let made = self.check((api.CreateSessionOptions)(&mut options)).and_then(|()| {
                self.check((api.SetSessionLogSeverityLevel)(options, FATAL))?;
                self.check((api.SetIntraOpNumThreads)(options, 1))?;
                self.check((api.CreateSessionFromArray)(self.env.as_ptr(), model, NOTHING.len(), options, &mut session))
            });
            if made.is_ok() {
                (api.ReleaseSession)(session);
            }
            if !options.is_null() {
                (api.ReleaseSessionOptions)(options);
            }
        }
    }

    /// Names of the execution providers that it was built with.
    pub fn providers(&self) -> Vec<String> {
        let (mut names, mut count) = (null_mut(), 0);
        // SAFETY: the list holds `count` texts until it is released.
        unsafe {
            if self.check((self.api.GetAvailableProviders)(&mut names, &mut count)).is_err() {
                return Vec::new();
            }
            let name = |at| CStr::from_ptr(*names.add(at)).to_string_lossy().into_owned();
            let found = (0..count as usize).map(name).collect();
            let _ = self.check((self.api.ReleaseAvailableProviders)(names, count));
            found
        }
    }
}

/// Paths of the loaded images that may hold onnxruntime: a second copy would be a second environment.
fn loaded_images() -> Vec<PathBuf> {
    unsafe extern "C" fn note(info: *mut libc::dl_phdr_info, _: usize, found: *mut c_void) -> c_int {
        // SAFETY: the loader passes a valid record, and `found` is the vector below.
        unsafe {
            let (name, found) = ((*info).dlpi_name, &mut *found.cast::<Vec<PathBuf>>());
            if !name.is_null() {
                let path = path_of(CStr::from_ptr(name));
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if file.starts_with("libonnxruntime.so") {
                    found.push(path);
                }
            }
        }
        0
    }
    let mut found: Vec<PathBuf> = Vec::new();
    // SAFETY: `note` only reads the record, and pushes to a vector that outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut found).cast()) };
    found
}

/// Files of onnxruntime in a folder, the plainest names first.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_library = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libonnxruntime.so")
    };
    let mut found: Vec<PathBuf> = names.filter(is_library).collect();
    found.sort();
    found
}

/// The folder of the image that this code is part of.
fn own_folder() -> Option<PathBuf> {
    let path = image_of(own_folder as fn() -> Option<PathBuf> as *const c_void)?;
    Path::new(&path).canonicalize().ok()?.parent().map(Path::to_owned)
}

/// Path of the image that holds an address.
fn image_of(address: *const c_void) -> Option<String> {
    let mut info = libc::Dl_info { dli_fname: null(), dli_fbase: null_mut(), dli_sname: null(), dli_saddr: null_mut() };
    // SAFETY: the record is written by the call, and the text in it lives as long as the image.
    unsafe {
        if libc::dladdr(address, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        Some(path_of(CStr::from_ptr(info.dli_fname)).to_string_lossy().into_owned())
    }
}

fn path_of(name: &CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(name.to_bytes()).into()
}

/// A text for onnxruntime; a NUL character inside it ends it.
pub fn c_string(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).expect("has no NUL")
}
