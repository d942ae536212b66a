//! What can go wrong on a GPU, as sentences for the user.

/// What stands in the way of a GPU, or what failed on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The driver library is not on this machine.
    #[error("no NVIDIA driver on this machine (the library libcuda was not found)")]
    NoDriver,
    /// The driver is there and knows no GPU.
    #[error("the NVIDIA driver is installed, but it finds no GPU ({0})")]
    NoDevice(String),
    /// The driver is there and does not work.
    #[error("the NVIDIA driver is installed, but it cannot be used: {0}")]
    Unusable(String),
    /// A device was asked for beyond those that exist.
    #[error("there is no GPU {index}: this machine has {count} (numbered from 0)")]
    NoSuchDevice {
        /// The number asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU is older than the kernels.
    #[error("{name} has compute capability {}.{}; the kernels need 8.0 (Ampere) or later", found.0, found.1)]
    GpuTooOld {
        /// The GPU.
        name: String,
        /// Its compute capability, major and minor.
        found: (u32, u32),
    },
    /// The driver is older than a module.
    #[error(
        "the NVIDIA driver is too old for the kernels of {module}: they need PTX ISA {needed} (driver {driver} or later), and this driver \
         supports CUDA {}.{}",
        found.0,
        found.1
    )]
    DriverTooOld {
        /// The file of kernels.
        module: String,
        /// The `.version` of its PTX.
        needed: String,
        /// The first driver branch that takes it.
        driver: &'static str,
        /// The CUDA version of the driver that is there, major and minor.
        found: (u32, u32),
    },
    /// The memory does not suffice.
    #[error(
        "out of memory on {device}: asked for {}, {} of {} free ({} in use by this program); for training, lower the batch or the \
         sequence length; for decoding, the context (--context) or the samples at once (-n), or keep weights and cache in bf16 (--weights bf16, --kv \
         bf16)",
        size(*asked),
        size(*free),
        size(*total),
        size(*in_use)
    )]
    OutOfMemory {
        /// The GPU.
        device: String,
        /// Bytes that were asked for.
        asked: usize,
        /// Bytes free on the device, after everything unused was given back.
        free: usize,
        /// Bytes of the device.
        total: usize,
        /// Bytes of buffers that this program holds.
        in_use: usize,
    },
    /// A module was not accepted.
    #[error("the kernels of {module} cannot be loaded: {reason}{}{log}", if log.is_empty() { "" } else { "\n" })]
    Module {
        /// The file of kernels, or the kernel in it.
        module: String,
        /// The driver's words.
        reason: String,
        /// What its compiler wrote.
        log: String,
    },
    /// A kernel failed while it ran. Nothing on the device can be trusted any more.
    #[error("a kernel failed on {device}: {launch}: {reason}")]
    Kernel {
        /// The GPU.
        device: String,
        /// Which launch it was, or between which.
        launch: String,
        /// The driver's words.
        reason: String,
    },
    /// Any other call to the driver failed.
    #[error("{device}: {action}: {reason}")]
    Call {
        /// The GPU.
        device: String,
        /// What was being done, with its size.
        action: String,
        /// The driver's words.
        reason: String,
    },
}

/// `1.5 GiB`, `20.0 MiB`, `512 bytes`.
fn size(bytes: usize) -> String {
    match bytes {
        0..1048576 => format!("{bytes} bytes"),
        1048576..1073741824 => format!("{:.1} MiB", bytes as f64 / 1048576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1073741824.0),
    }
}
