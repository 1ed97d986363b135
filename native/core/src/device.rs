//! The device that a model runs on, and why.

use std::ffi::{c_char, c_int, c_uint, CStr};
use std::fmt;

use libloading::os::unix::Library;

use crate::error::{Error, Result, Status};
use crate::runtime::Runtime;
use crate::session::Provider;

/// A device that a caller asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// A GPU through onnxruntime's CUDA provider if both are there, and else the CPU.
    Auto,
    /// A GPU through onnxruntime's CUDA provider.
    Cuda,
    /// A GPU through onnxruntime's TensorRT provider.
    TensorRt,
}

/// An NVIDIA GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its name, such as `NVIDIA L4`.
    pub name: String,
    /// Its compute capability, such as `sm89`.
    pub capability: String,
}

impl fmt::Display for Gpu {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{} ({})", self.name, self.capability)
    }
}

/// A device that was chosen.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The execution provider.
    pub provider: Provider,
    /// The reason for it.
    pub why: String,
    /// The GPU, if it is one.
    pub gpu: Option<Gpu>,
}

/// Chooses an execution provider, and gives the reason.
///
/// Fails if a GPU is asked for, and the provider or the GPU is missing.
pub fn choose(runtime: &Runtime, device: Device, number: u32) -> Result<Choice> {
    choose_from(&runtime.providers(), &runtime.path, device, number, || gpu(number))
}

fn choose_from(
    providers: &[String],
    path: &str,
    device: Device,
    number: u32,
    find_gpu: impl FnOnce() -> Option<Gpu>,
) -> Result<Choice> {
    let has = |name: &str| providers.iter().any(|provider| provider == name);
    let (cuda, tensorrt) = (has("CUDAExecutionProvider"), has("TensorrtExecutionProvider"));
    let cpu = |why: &str| Ok(Choice { provider: Provider::Cpu, why: why.into(), gpu: None });
    let missing = |message: String| Err(Error::new(Status::DeviceMissing, message));
    let (name, label, present, provider) = match device {
        Device::Cpu => return cpu("as asked"),
        Device::Auto if !cuda => return cpu("this onnxruntime has no CUDA provider"),
        Device::Auto | Device::Cuda => ("cuda", "CUDA", cuda, Provider::Cuda(number)),
        Device::TensorRt => ("tensorrt", "TensorRT", tensorrt, Provider::TensorRt(number)),
    };
    if !present {
        return missing(format!(
            "device '{name}' needs onnxruntime's {label} provider, which {path} lacks; install onnxruntime for GPUs, \
             or use device 'cpu'."
        ));
    }
    match (find_gpu(), device) {
        (Some(gpu), Device::Auto) => Ok(Choice { provider, why: format!("{gpu} was found"), gpu: Some(gpu) }),
        (Some(gpu), _) => Ok(Choice { provider, why: "as asked".into(), gpu: Some(gpu) }),
        (None, Device::Auto) => {
            cpu("onnxruntime has a CUDA provider, but CUDA gives this process no GPU of that number")
        }
        (None, _) => missing(format!(
            "device '{name}' is asked for, and CUDA gives this process no GPU of number {number}; check the driver \
             with nvidia-smi, and CUDA_VISIBLE_DEVICES, or use device 'cpu'."
        )),
    }
}

/// A GPU by the number that CUDA gives it in this process; None if there is none.
fn gpu(number: u32) -> Option<Gpu> {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    let number = c_int::try_from(number).ok()?;
    let (mut device, mut major, mut minor, mut name) = (0, 0, 0, [0; 256]);
    // SAFETY: the driver's functions have these types; the library stays open, because CUDA cannot be unloaded.
    unsafe {
        let driver = Box::leak(Box::new(Library::new("libcuda.so.1").ok()?));
        let init = driver.get::<Init>(b"cuInit\0").ok()?;
        let get = driver.get::<Get>(b"cuDeviceGet\0").ok()?;
        let get_name = driver.get::<Name>(b"cuDeviceGetName\0").ok()?;
        let attribute = driver.get::<Attribute>(b"cuDeviceGetAttribute\0").ok()?;
        let found = init(0) == 0
            && get(&mut device, number) == 0
            && get_name(name.as_mut_ptr(), name.len() as c_int - 1, device) == 0
            && attribute(&mut major, MAJOR, device) == 0
            && attribute(&mut minor, MINOR, device) == 0;
        let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
        found.then(|| Gpu { name, capability: format!("sm{major}{minor}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(providers: &[&str], device: Device, gpu: bool) -> Result<Choice> {
        let providers: Vec<String> = providers.iter().map(|name| (*name).to_owned()).collect();
        let gpu = gpu.then(|| Gpu { name: "NVIDIA L4".into(), capability: "sm89".into() });
        choose_from(&providers, "libonnxruntime.so", device, 1, || gpu)
    }

    const CPU: &[&str] = &["CPUExecutionProvider"];
    const ALL: &[&str] = &["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"];

    #[test]
    fn the_choice_has_a_reason() {
        for (providers, device, gpu, provider, why) in [
            (ALL, Device::Cpu, true, Provider::Cpu, "as asked"),
            (CPU, Device::Auto, true, Provider::Cpu, "this onnxruntime has no CUDA provider"),
            (ALL, Device::Auto, true, Provider::Cuda(1), "NVIDIA L4 (sm89) was found"),
            (ALL, Device::Cuda, true, Provider::Cuda(1), "as asked"),
            (ALL, Device::TensorRt, true, Provider::TensorRt(1), "as asked"),
        ] {
            let choice = chosen(providers, device, gpu).unwrap();
            assert_eq!((choice.provider, choice.why.as_str()), (provider, why));
        }
        let none = chosen(ALL, Device::Auto, false).unwrap();
        assert_eq!(none.provider, Provider::Cpu);
        assert!(none.why.contains("gives this process no GPU"), "{}", none.why);
    }

    #[test]
    fn what_is_asked_for_and_missing_is_refused() {
        for (providers, device, gpu, words) in [
            (CPU, Device::Cuda, true, "onnxruntime's CUDA provider, which libonnxruntime.so lacks"),
            (CPU, Device::TensorRt, true, "onnxruntime's TensorRT provider, which libonnxruntime.so lacks"),
            (ALL, Device::Cuda, false, "no GPU of number 1"),
            (ALL, Device::TensorRt, false, "no GPU of number 1"),
        ] {
            let error = chosen(providers, device, gpu).unwrap_err();
            assert_eq!(error.status, Status::DeviceMissing);
            assert!(error.message.contains(words) && error.message.contains("or use device 'cpu'"), "{error}");
        }
    }
}
