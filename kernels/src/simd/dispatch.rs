//! From a level chosen at run time to code compiled for it.

use super::{Portable, Scalar, Simd};
use std::env::VarError;
use std::fmt;
use std::str::FromStr;

/// An instruction set that kernels are compiled for. Naming one does not make it present: see [`Level`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// One lane, plain `f32`.
    Scalar,
    /// Eight lanes on `wide`, with the instructions of the build.
    Portable,
    /// Eight lanes with AVX2, FMA and F16C.
    Avx2,
    /// Sixteen lanes with AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Isa {
    /// All of them, slowest first.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// The name used by `KERNELS_SIMD` and in every report.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    fn is_present(self) -> bool {
        match self {
            Isa::Scalar | Isa::Portable => true,
            // All that `run_avx2` enables. CPUs with AVX2 have the others, but a hypervisor may hide them.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
                    && is_x86_feature_detected!("popcnt")
                    && is_x86_feature_detected!("lzcnt")
            }
            // All that `run_avx512` enables.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_present()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => false,
        }
    }
}

impl FromStr for Isa {
    type Err = LevelError;
    fn from_str(name: &str) -> Result<Self, LevelError> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| LevelError::Unknown(name.to_string()))
    }
}

/// Why a level cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LevelError {
    /// The name is none of those in [`Isa::ALL`].
    Unknown(String),
    /// This CPU lacks the instructions.
    Absent(Isa),
}

impl fmt::Display for LevelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LevelError::Unknown(name) => {
                write!(f, "KERNELS_SIMD={name}: not a level; expected one of scalar, portable, avx2, avx512")
            }
            LevelError::Absent(isa) => write!(
                f,
                "KERNELS_SIMD={}: this CPU lacks the instructions; the best level here is {}",
                isa.name(),
                Level::best()
            ),
        }
    }
}

impl std::error::Error for LevelError {}

/// An instruction set that this CPU has. Holding one is the proof that [`dispatch`](Level::dispatch) needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(Isa);

impl Level {
    /// The level for debugging; present everywhere.
    pub const SCALAR: Level = Level(Isa::Scalar);
    /// The fallback; present everywhere.
    pub const PORTABLE: Level = Level(Isa::Portable);

    /// The level of `isa`, if this CPU has it.
    pub fn new(isa: Isa) -> Result<Level, LevelError> {
        if isa.is_present() { Ok(Level(isa)) } else { Err(LevelError::Absent(isa)) }
    }

    /// The fastest level of this CPU.
    pub fn best() -> Level {
        Self::available().last().expect("scalar is always present")
    }

    /// Every level of this CPU, slowest first. Tests run over all of them.
    pub fn available() -> impl DoubleEndedIterator<Item = Level> {
        Isa::ALL.into_iter().filter_map(|isa| Level::new(isa).ok())
    }

    /// The level that `KERNELS_SIMD` asks for, or the best one if the variable is unset or empty.
    /// An unknown name and a level that this CPU lacks are errors: nothing falls back in silence.
    pub fn from_env() -> Result<Level, LevelError> {
        Self::asked_for(std::env::var("KERNELS_SIMD"))
    }

    fn asked_for(variable: Result<String, VarError>) -> Result<Level, LevelError> {
        match variable {
            Ok(name) if !name.is_empty() => Level::new(name.parse()?),
            Err(VarError::NotUnicode(name)) => Err(LevelError::Unknown(name.to_string_lossy().into_owned())),
            Ok(_) | Err(VarError::NotPresent) => Ok(Level::best()),
        }
    }

    /// The instruction set.
    pub const fn isa(self) -> Isa {
        self.0
    }

    /// Whether this level has a dot product of bf16 on this CPU: see [`DotBf16`](super::DotBf16).
    pub fn has_dot_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Isa::Avx512 && is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Runs `kernel` compiled for this level and its dot product of bf16, which [`Simd::dot_bf16`] then gives.
    /// Panics if the level does not [have](Level::has_dot_bf16) one.
    #[inline]
    pub(crate) fn dispatch_dot_bf16<K: Kernel>(self, kernel: K) -> K::Output {
        assert!(self.has_dot_bf16(), "dispatch_dot_bf16: level {self} has no dot product of bf16 on this CPU");
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a Level is only made by `Level::new`, which checked the CPU for the features of `avx512`; `has_dot_bf16` checked
        // it for the one besides.
        return unsafe { run_avx512_bf16(kernel) };
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("no level of this architecture has a dot product of bf16: {}", std::any::type_name::<K>())
    }

    /// Runs `kernel` compiled for this level.
    #[inline]
    pub fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Isa::Scalar => kernel.run(Scalar::new()),
            Isa::Portable => kernel.run(Portable::new()),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a Level is only made by `Level::new`, which checked the CPU for every feature that `run_avx2` enables.
            Isa::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above, for `run_avx512`.
            Isa::Avx512 => unsafe { run_avx512(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => unreachable!("Level::new refuses {} on this architecture", self.0.name()),
        }
    }

    /// Whether [`Simd::dot_i8`] is one instruction for kernels that are run by [`dispatch_dot_i8`](Level::dispatch_dot_i8).
    pub fn has_vnni(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Isa::Avx512 && is_x86_feature_detected!("avx512vnni");
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// [`dispatch`](Level::dispatch) for a kernel that uses [`Simd::dot_i8`]: with the instruction for it, if the level and the
    /// CPU have one. The bits are the same.
    #[inline]
    pub fn dispatch_dot_i8<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        if self.has_vnni() {
            // SAFETY: `has_vnni` asked the CPU for VNNI, and `Level::new` for the others that `run_avx512_vnni` enables.
            return unsafe { run_avx512_vnni(kernel) };
        }
        self.dispatch(kernel)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

/// A computation written once for all levels: a struct of its arguments.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// The computation. Implementations are `#[inline(always)]`, and so is all they call with `simd`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Never inlined: see [`Simd::call`].
///
/// # Safety
/// The CPU has the features enabled here.
#[inline(never)]
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's contract includes that of `new_unchecked`.
    kernel.run(unsafe { super::Avx2::new_unchecked() })
}

/// As [`run_avx2`].
///
/// # Safety
/// The CPU has the features enabled here.
#[inline(never)]
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's contract includes that of `new_unchecked`.
    kernel.run(unsafe { super::Avx512::<false, false>::new_unchecked() })
}

/// As [`run_avx2`].
///
/// # Safety
/// The CPU has the features enabled here.
#[inline(never)]
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
pub(super) unsafe fn run_avx512_vnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's contract includes that of `new_unchecked`.
    kernel.run(unsafe { super::Avx512::<true, false>::new_unchecked() })
}

/// As [`run_avx2`].
///
/// # Safety
/// The CPU has the features enabled here.
#[inline(never)]
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,popcnt,lzcnt")]
pub(super) unsafe fn run_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's contract includes that of `new_unchecked`.
    kernel.run(unsafe { super::Avx512::<false, true>::new_unchecked() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_asked_for_falls_back_in_silence() {
        assert_eq!(Level::asked_for(Err(VarError::NotPresent)), Ok(Level::best()));
        assert_eq!(Level::asked_for(Ok(String::new())), Ok(Level::best()));
        assert_eq!(Level::asked_for(Ok("scalar".into())), Ok(Level::SCALAR));
        assert_eq!(Level::asked_for(Ok("AVX512".into())), Err(LevelError::Unknown("AVX512".into())));
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStringExt;
            let name = std::ffi::OsString::from_vec(b"scal\xffr".to_vec());
            let result = Level::asked_for(Err(VarError::NotUnicode(name)));
            assert_eq!(result, Err(LevelError::Unknown("scal\u{fffd}r".into())));
        }
    }
}
