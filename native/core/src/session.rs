//! Sessions of onnxruntime: one graph, ready to run into the caller's memory.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::path::Path;
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ort_sys::{
    OrtMemoryInfo, OrtPrepackedWeightsContainer, OrtRunOptions, OrtSession, OrtSessionOptions, OrtStatusPtr,
    OrtTypeInfo, OrtValue,
};

use crate::manifest::{Axis, TensorSpec};
use crate::onnx::External;
use crate::runtime::{c_string, log_severity, Fault, Runtime};
use crate::weights::Mapped;

type Outcome<T> = Result<T, Fault>;

/// onnxruntime's numbers of element types.
const FLOAT: i32 = 1;
const UINT8: i32 = 2;
const INT32: i32 = 6;

/// A device, with its execution provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The CPU.
    Cpu,
    /// The CUDA provider, and the CPU's for what it does not run.
    Cuda(u32),
    /// The TensorRT provider, and those of CUDA and the CPU for what it does not run.
    TensorRt(u32),
}

/// How a session is opened.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Threads of one operator, the calling one included.
    pub threads: u32,
    /// The device.
    pub provider: Provider,
    /// Whether a waiting thread may spin while a run is in progress.
    pub spinning: bool,
}

/// Packed weights that several sessions share. It outlives them.
pub struct Prepacked {
    runtime: &'static Runtime,
    raw: NonNull<OrtPrepackedWeightsContainer>,
}

// SAFETY: onnxruntime locks the container.
unsafe impl Send for Prepacked {}
unsafe impl Sync for Prepacked {}

impl Prepacked {
    /// An empty container.
    pub fn new(runtime: &'static Runtime) -> Outcome<Prepacked> {
        let mut raw = null_mut();
        // SAFETY: the pointer is written on success.
        unsafe { runtime.check((runtime.api.CreatePrepackedWeightsContainer)(&mut raw))? };
        Ok(Prepacked { runtime, raw: made(raw)? })
    }
}

impl Drop for Prepacked {
    fn drop(&mut self) {
        // SAFETY: no session that uses it is left.
        unsafe { (self.runtime.api.ReleasePrepackedWeightsContainer)(self.raw.as_ptr()) };
    }
}

/// A tensor over memory of ours.
struct Tensor {
    runtime: &'static Runtime,
    raw: NonNull<OrtValue>,
}

impl Tensor {
    /// A tensor over `size` bytes at `data`.
    ///
    /// # Safety
    /// The memory must outlive the tensor, and be writable if the tensor is an output.
    unsafe fn over(
        runtime: &'static Runtime,
        data: *mut c_void,
        size: usize,
        shape: &[i64],
        dtype: i32,
    ) -> Outcome<Tensor> {
        type Create = unsafe extern "system" fn(
            *const OrtMemoryInfo,
            *mut c_void,
            usize,
            *const i64,
            usize,
            i32,
            *mut *mut OrtValue,
        ) -> OrtStatusPtr;
        let mut raw = null_mut();
        // SAFETY: the pointers are valid for the call. The type is passed as a number, since the enum may lack it.
        unsafe {
            let create: Create = std::mem::transmute(runtime.api.CreateTensorWithDataAsOrtValue);
            let memory = runtime.memory.as_ptr();
            runtime.check(create(memory, data, size, shape.as_ptr(), shape.len(), dtype, &mut raw))?;
        }
        Ok(Tensor { runtime, raw: made(raw)? })
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: it is ours, and released once.
        unsafe { (self.runtime.api.ReleaseValue)(self.raw.as_ptr()) };
    }
}

/// Values of an input.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Bytes.
    Uint8(&'a [u8]),
    /// Whole numbers.
    Int32(&'a [i32]),
    /// Numbers.
    Float32(&'a [f32]),
}

/// One input of a run.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Its name in the graph.
    pub name: &'static CStr,
    /// Its shape, whose product is the number of values.
    pub shape: &'a [i64],
    /// Its values.
    pub values: Values<'a>,
}

impl Input<'_> {
    fn tensor(&self, runtime: &'static Runtime) -> Outcome<Tensor> {
        let (data, size, dtype) = match self.values {
            Values::Uint8(values) => (values.as_ptr().cast(), size_of_val(values), UINT8),
            Values::Int32(values) => (values.as_ptr().cast(), size_of_val(values), INT32),
            Values::Float32(values) => (values.as_ptr().cast::<c_void>(), size_of_val(values), FLOAT),
        };
        // SAFETY: an input is only read, and lives until the run has ended. onnxruntime checks size and shape.
        unsafe { Tensor::over(runtime, data.cast_mut(), size, self.shape, dtype) }
    }
}

/// Options of the runs of one caller, through which another thread may end a run.
pub struct Runs {
    runtime: &'static Runtime,
    keeping: NonNull<OrtRunOptions>,
    shrinking: NonNull<OrtRunOptions>,
    cancelled: AtomicBool,
}

// SAFETY: onnxruntime reads the flag that `cancel` sets while a run is in progress; nothing else changes.
unsafe impl Send for Runs {}
unsafe impl Sync for Runs {}

impl Runs {
    /// Options of runs that are not cancelled.
    pub fn new(runtime: &'static Runtime) -> Outcome<Runs> {
        let options = || {
            let mut raw = null_mut();
            // SAFETY: the pointer is written on success.
            unsafe { runtime.check((runtime.api.CreateRunOptions)(&mut raw))? };
            made(raw)
        };
        let keeping = options()?;
        let shrinking = options()?;
        let runs = Runs { runtime, keeping, shrinking, cancelled: AtomicBool::new(false) };
        // Gives the memory of a run back when it ends, which onnxruntime keeps otherwise while the session lives.
        let (key, value) = (c"memory.enable_memory_arena_shrinkage", c"cpu:0");
        // SAFETY: all pointers are valid.
        unsafe { runtime.check((runtime.api.AddRunConfigEntry)(shrinking.as_ptr(), key.as_ptr(), value.as_ptr()))? };
        Ok(runs)
    }

    /// Ends the run in progress and every later one, until [`Runs::reset`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        for options in [self.keeping, self.shrinking] {
            // SAFETY: the options are ours; this sets a flag and cannot fail.
            let _ = unsafe { self.runtime.check((self.runtime.api.RunOptionsSetTerminate)(options.as_ptr())) };
        }
    }

    /// Lets runs begin again.
    pub fn reset(&self) {
        for options in [self.keeping, self.shrinking] {
            // SAFETY: as in `cancel`.
            let _ = unsafe { self.runtime.check((self.runtime.api.RunOptionsUnsetTerminate)(options.as_ptr())) };
        }
        self.cancelled.store(false, Ordering::SeqCst);
    }

    /// Whether runs are to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        for options in [self.keeping, self.shrinking] {
            // SAFETY: they are ours, and released once.
            unsafe { (self.runtime.api.ReleaseRunOptions)(options.as_ptr()) };
        }
    }
}

/// An open graph. Several threads may run it at once on a CPU; on a GPU they take turns.
pub struct Session {
    runtime: &'static Runtime,
    raw: NonNull<OrtSession>,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    turns: Option<Mutex<()>>,
    _weights: Vec<(Tensor, Arc<Mapped>)>,
}

// SAFETY: onnxruntime's Run may be called by several threads on the CPU provider, and `turns` orders them on others.
unsafe impl Send for Session {}
unsafe impl Sync for Session {}

/// An initialiser of a graph with the file that holds its values.
pub struct Weight {
    /// Its name, type, shape and place; its bytes lie inside the file.
    pub external: External,
    /// The file.
    pub file: Arc<Mapped>,
}

impl Session {
    /// Opens a serialised model whose external weights are given.
    ///
    /// Sessions that are given one container share the weights that the CPU's kernels pack for themselves.
    pub fn open(
        runtime: &'static Runtime,
        model: &[u8],
        weights: Vec<Weight>,
        options: &SessionOptions,
        prepacked: Option<&Prepacked>,
    ) -> Outcome<Session> {
        let config = Config::new(runtime)?;
        config.set(options)?;
        let weights = config.add_weights(weights, prepacked.is_some())?;
        let (env, data) = (runtime.env.as_ptr(), model.as_ptr().cast::<c_void>());
        let mut raw = null_mut();
        // SAFETY: the model and the options are valid for the call, and the weights outlive the session.
        unsafe {
            let status = match prepacked {
                Some(container) => (runtime.api.CreateSessionFromArrayWithPrepackedWeightsContainer)(
                    env,
                    data,
                    model.len(),
                    config.raw.as_ptr(),
                    container.raw.as_ptr(),
                    &mut raw,
                ),
                None => (runtime.api.CreateSessionFromArray)(env, data, model.len(), config.raw.as_ptr(), &mut raw),
            };
            runtime.check(status)?;
        }
        Session::described(runtime, made(raw)?, options, weights)
    }

    /// Opens an EP-context model, which the provider has compiled already and whose weights lie in it or beside it.
    pub fn open_compiled(runtime: &'static Runtime, path: &Path, options: &SessionOptions) -> Outcome<Session> {
        use std::os::unix::ffi::OsStrExt;
        let config = Config::new(runtime)?;
        config.set(options)?;
        let path = CString::new(path.as_os_str().as_bytes()).expect("an opened bundle's path has no NUL");
        let mut raw = null_mut();
        // SAFETY: the path ends in NUL, and the options are valid for the call.
        unsafe {
            let status =
                (runtime.api.CreateSession)(runtime.env.as_ptr(), path.as_ptr(), config.raw.as_ptr(), &mut raw);
            runtime.check(status)?;
        }
        Session::described(runtime, made(raw)?, options, Vec::new())
    }

    fn described(
        runtime: &'static Runtime,
        raw: NonNull<OrtSession>,
        options: &SessionOptions,
        weights: Vec<(Tensor, Arc<Mapped>)>,
    ) -> Outcome<Session> {
        let turns = (options.provider != Provider::Cpu).then(|| Mutex::new(()));
        let mut session = Session { runtime, raw, inputs: Vec::new(), outputs: Vec::new(), turns, _weights: weights };
        session.inputs = session.specs(true)?;
        session.outputs = session.specs(false)?;
        Ok(session)
    }

    /// Names, types and shapes of its inputs.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    /// Names, types and shapes of its outputs.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    /// Runs the graph for one output, a float tensor of `shape`, into `out`; inputs that the graph lacks are left out.
    ///
    /// `shrink` gives the memory of the run back when it ends.
    pub fn run(
        &self,
        inputs: &[Input],
        output: &str,
        shape: &[i64],
        out: &mut [f32],
        runs: &Runs,
        shrink: bool,
    ) -> Outcome<()> {
        let taken: Vec<&Input> = inputs.iter().filter(|input| self.takes(input.name)).collect();
        let names: Vec<*const c_char> = taken.iter().map(|input| input.name.as_ptr()).collect();
        let tensors = taken.iter().map(|input| input.tensor(self.runtime)).collect::<Outcome<Vec<Tensor>>>()?;
        let values: Vec<*const OrtValue> = tensors.iter().map(|tensor| tensor.raw.as_ptr().cast_const()).collect();
        let output = c_string(output);
        let size = size_of_val(out);
        // SAFETY: the memory is the caller's for the whole call; onnxruntime checks that the tensor fits into it.
        let result = unsafe { Tensor::over(self.runtime, out.as_mut_ptr().cast(), size, shape, FLOAT)? };
        let mut result = result.raw.as_ptr().cast::<OrtValue>();
        let options = if shrink { runs.shrinking } else { runs.keeping };
        let _turn = self.turns.as_ref().map(|turns| turns.lock().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: all pointers are valid for the call, and the output is there, so that none is made.
        unsafe {
            self.runtime.check((self.runtime.api.Run)(
                self.raw.as_ptr(),
                options.as_ptr(),
                names.as_ptr(),
                values.as_ptr(),
                values.len(),
                &output.as_ptr(),
                1,
                &mut result,
            ))
        }
    }

    fn takes(&self, name: &CStr) -> bool {
        self.inputs.iter().any(|spec| spec.name.as_bytes() == name.to_bytes())
    }

    fn specs(&self, inputs: bool) -> Outcome<Vec<TensorSpec>> {
        let (api, session) = (self.runtime.api, self.raw.as_ptr());
        let mut count = 0;
        // SAFETY: the session is open, and every pointer is valid for its call. The name is freed by its allocator.
        unsafe {
            self.runtime.check(if inputs {
                (api.SessionGetInputCount)(session, &mut count)
            } else {
                (api.SessionGetOutputCount)(session, &mut count)
            })?;
            let mut allocator = null_mut();
            self.runtime.check((api.GetAllocatorWithDefaultOptions)(&mut allocator))?;
            let mut found = Vec::new();
            for index in 0..count {
                let (mut name, mut info) = (null_mut(), null_mut());
                let (get_name, get_info) = if inputs {
                    (api.SessionGetInputName, api.SessionGetInputTypeInfo)
                } else {
                    (api.SessionGetOutputName, api.SessionGetOutputTypeInfo)
                };
                self.runtime.check(get_name(session, index, allocator, &mut name))?;
                let text = CStr::from_ptr(name).to_string_lossy().into_owned();
                self.runtime.check((api.AllocatorFree)(allocator, name.cast()))?;
                self.runtime.check(get_info(session, index, &mut info))?;
                let spec = self.spec(text, info);
                (api.ReleaseTypeInfo)(info);
                found.push(spec?);
            }
            Ok(found)
        }
    }

    /// # Safety
    /// `info` must be a description of onnxruntime's that has not been released.
    unsafe fn spec(&self, name: String, info: *const OrtTypeInfo) -> Outcome<TensorSpec> {
        let (api, runtime) = (self.runtime.api, self.runtime);
        // SAFETY: as the caller promises; the type is read into a number, since the enum may lack it.
        unsafe {
            let mut tensor = std::ptr::null();
            runtime.check((api.CastTypeInfoToTensorInfo)(info, &mut tensor))?;
            if tensor.is_null() {
                return Ok(TensorSpec { name, dtype: "no tensor".into(), shape: Vec::new() });
            }
            let mut dtype: i32 = 0;
            runtime.check((api.GetTensorElementType)(tensor, (&raw mut dtype).cast()))?;
            let mut rank = 0;
            runtime.check((api.GetDimensionsCount)(tensor, &mut rank))?;
            let (mut sizes, mut names) = (vec![0_i64; rank], vec![std::ptr::null::<c_char>(); rank]);
            runtime.check((api.GetDimensions)(tensor, sizes.as_mut_ptr(), rank))?;
            runtime.check((api.GetSymbolicDimensions)(tensor, names.as_mut_ptr(), rank))?;
            let axis = |(size, name): (i64, *const c_char)| {
                if size >= 0 {
                    return Axis::Size(size);
                }
                Axis::Named(if name.is_null() { String::new() } else { CStr::from_ptr(name).to_string_lossy().into() })
            };
            let dtype = match dtype {
                FLOAT => "float32".into(),
                UINT8 => "uint8".into(),
                INT32 => "int32".into(),
                other => format!("type {other}"),
            };
            Ok(TensorSpec { name, dtype, shape: sizes.into_iter().zip(names).map(axis).collect() })
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: it is ours, released once, and nobody runs it any more.
        unsafe { (self.runtime.api.ReleaseSession)(self.raw.as_ptr()) };
    }
}

/// Session options in the making.
struct Config {
    runtime: &'static Runtime,
    raw: NonNull<OrtSessionOptions>,
}

impl Config {
    fn new(runtime: &'static Runtime) -> Outcome<Config> {
        let mut raw = null_mut();
        // SAFETY: the pointer is written on success.
        unsafe { runtime.check((runtime.api.CreateSessionOptions)(&mut raw))? };
        Ok(Config { runtime, raw: made(raw)? })
    }

    fn set(&self, options: &SessionOptions) -> Outcome<()> {
        let (api, raw) = (self.runtime.api, self.raw.as_ptr());
        // SAFETY: the options are open, and every text ends in NUL.
        unsafe {
            self.runtime.check((api.SetSessionLogSeverityLevel)(raw, log_severity()))?;
            // onnxruntime would take a thread for each core of the machine, of which a container may have a few.
            self.runtime.check((api.SetIntraOpNumThreads)(raw, options.threads as c_int))?;
            // onnxruntime would keep a plan of the memory for each shape that it has met, and shapes are ever new.
            self.runtime.check((api.DisableMemPattern)(raw))?;
        }
        // Otherwise the threads of a finished run would wait by spinning, and share the cores with those of the next.
        self.entry(c"session.force_spinning_stop", c"1")?;
        if !options.spinning {
            self.entry(c"session.intra_op.allow_spinning", c"0")?;
        }
        match options.provider {
            Provider::Cpu => Ok(()),
            Provider::Cuda(device) => self.add_cuda(device),
            Provider::TensorRt(device) => self.add_tensorrt(device).and_then(|()| self.add_cuda(device)),
        }
    }

    fn entry(&self, key: &CStr, value: &CStr) -> Outcome<()> {
        let (api, raw) = (self.runtime.api, self.raw.as_ptr());
        // SAFETY: all pointers are valid.
        unsafe { self.runtime.check((api.AddSessionConfigEntry)(raw, key.as_ptr(), value.as_ptr())) }
    }

    fn add_cuda(&self, device: u32) -> Outcome<()> {
        let api = self.runtime.api;
        let mut provider = null_mut();
        let device = c_string(&device.to_string());
        // By default the provider rounds float32 products to TF32, three decimal digits, and parity would not hold.
        let keys = [c"device_id".as_ptr(), c"use_tf32".as_ptr()];
        let values = [device.as_ptr(), c"0".as_ptr()];
        // SAFETY: the arrays have two texts each, and the provider's options are released once.
        unsafe {
            self.runtime.check((api.CreateCUDAProviderOptions)(&mut provider))?;
            let updated =
                self.runtime.check((api.UpdateCUDAProviderOptions)(provider, keys.as_ptr(), values.as_ptr(), 2));
            let added = updated.and_then(|()| {
                self.runtime.check((api.SessionOptionsAppendExecutionProvider_CUDA_V2)(self.raw.as_ptr(), provider))
            });
            (api.ReleaseCUDAProviderOptions)(provider);
            added
        }
    }

    fn add_tensorrt(&self, device: u32) -> Outcome<()> {
        let api = self.runtime.api;
        let mut provider = null_mut();
        let device = c_string(&device.to_string());
        // SAFETY: the arrays have one text each, and the provider's options are released once.
        unsafe {
            self.runtime.check((api.CreateTensorRTProviderOptions)(&mut provider))?;
            let (keys, values) = ([c"device_id".as_ptr()], [device.as_ptr()]);
            let updated =
                self.runtime.check((api.UpdateTensorRTProviderOptions)(provider, keys.as_ptr(), values.as_ptr(), 1));
            let added = updated.and_then(|()| {
                self.runtime.check((api.SessionOptionsAppendExecutionProvider_TensorRT_V2)(self.raw.as_ptr(), provider))
            });
            (api.ReleaseTensorRTProviderOptions)(provider);
            added
        }
    }

    /// Gives the session its external weights in mapped memory, so that onnxruntime opens no file. `shared` lets it
    /// keep what it packs of them in a container.
    fn add_weights(&self, weights: Vec<Weight>, shared: bool) -> Outcome<Vec<(Tensor, Arc<Mapped>)>> {
        let mut names: Vec<CString> = Vec::new();
        let mut tensors = Vec::new();
        for Weight { external, file } in weights {
            let (start, size) = (external.offset as usize, external.length.unwrap_or(0) as usize);
            let bytes = &file.bytes()[start..start + size];
            let data = bytes.as_ptr().cast_mut().cast();
            // SAFETY: the file stays mapped as long as the tensor, and weights are only read.
            let tensor = unsafe { Tensor::over(self.runtime, data, size, &external.shape, external.dtype)? };
            names.push(c_string(&external.name));
            tensors.push((tensor, file));
        }
        let name_list: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let values: Vec<*const OrtValue> = tensors.iter().map(|(tensor, _)| tensor.raw.as_ptr().cast_const()).collect();
        let (api, raw) = (self.runtime.api, self.raw.as_ptr());
        // SAFETY: both lists have the same length, and all they point to outlives the session.
        unsafe {
            if !values.is_empty() {
                let status = (api.AddExternalInitializers)(raw, name_list.as_ptr(), values.as_ptr(), values.len());
                self.runtime.check(status)?;
            }
            if shared {
                for (name, value) in name_list.into_iter().zip(values) {
                    self.runtime.check((api.AddInitializer)(raw, name, value))?;
                }
            }
        }
        Ok(tensors)
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: they are ours, and released once.
        unsafe { (self.runtime.api.ReleaseSessionOptions)(self.raw.as_ptr()) };
    }
}

fn made<T>(raw: *mut T) -> Outcome<NonNull<T>> {
    NonNull::new(raw).ok_or_else(|| Fault { code: 1, message: "onnxruntime gave nothing".into() })
}
