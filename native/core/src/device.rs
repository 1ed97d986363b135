//! The device that a model runs on, and why.

use std::ffi::{c_int, c_uint};

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

/// Chooses an execution provider, and gives the reason.
pub fn choose(runtime: &Runtime, device: Device, number: u32) -> Result<(Provider, String)> {
    let providers = runtime.providers();
    let has = |name: &str| providers.iter().any(|provider| provider == name);
    let (cuda, tensorrt) = (has("CUDAExecutionProvider"), has("TensorrtExecutionProvider"));
    let missing = |device: &str, provider: &str| {
        let message = format!(
            "device '{device}' needs onnxruntime's {provider} provider, which {} lacks; install onnxruntime for GPUs, \
             or use device 'cpu'.",
            runtime.path
        );
        Err(Error::new(Status::DeviceMissing, message))
    };
    let as_asked = || "as asked".to_owned();
    match device {
        Device::Cpu => Ok((Provider::Cpu, as_asked())),
        Device::Cuda if cuda => Ok((Provider::Cuda(number), as_asked())),
        Device::Cuda => missing("cuda", "CUDA"),
        Device::TensorRt if tensorrt => Ok((Provider::TensorRt(number), as_asked())),
        Device::TensorRt => missing("tensorrt", "TensorRT"),
        Device::Auto if !cuda => Ok((Provider::Cpu, "this onnxruntime has no CUDA provider".into())),
        Device::Auto if gpus() <= number => {
            Ok((Provider::Cpu, "onnxruntime has a CUDA provider, but CUDA gives this process no GPU".into()))
        }
        Device::Auto => Ok((Provider::Cuda(number), "an NVIDIA GPU was found".into())),
    }
}

/// Number of GPUs that CUDA's driver gives this process.
fn gpus() -> u32 {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    let mut count = 0;
    // SAFETY: the driver's functions have these types; the library stays open, because CUDA cannot be unloaded.
    unsafe {
        let Ok(driver) = Library::new("libcuda.so.1") else { return 0 };
        let (Ok(init), Ok(get)) = (driver.get::<Init>(b"cuInit\0"), driver.get::<Count>(b"cuDeviceGetCount\0")) else {
            return 0;
        };
        if init(0) != 0 || get(&mut count) != 0 {
            count = 0;
        }
        std::mem::forget(driver);
    }
    count.max(0) as u32
}
