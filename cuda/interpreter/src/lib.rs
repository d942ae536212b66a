//! Runs NVIDIA PTX on the CPU, with every memory access checked: support for tests of GPU kernels on machines without a
//! GPU.
//!
//! ```
//! let module = ptx::Module::parse("twice", r#"
//!     .version 7.4
//!     .target sm_80
//!     .address_size 64
//!     .visible .entry twice(.param .u64 twice_x) {
//!         .reg .b32 %r<3>; .reg .b64 %rd<4>;
//!         ld.param.u64 %rd1, [twice_x];
//!         mov.u32 %r1, %tid.x;
//!         mul.wide.u32 %rd2, %r1, 4;
//!         add.s64 %rd3, %rd1, %rd2;
//!         ld.global.u32 %r2, [%rd3];
//!         add.s32 %r2, %r2, %r2;
//!         st.global.u32 [%rd3], %r2;
//!         ret;
//!     }"#)?;
//! let mut memory = ptx::Memory::new();
//! let x = memory.alloc(8);
//! memory.write(x, &[1, 0, 0, 0, 5, 0, 0, 0])?;
//! ptx::launch(&module, "twice", [1; 3], [2, 1, 1], 0, &x.to_le_bytes(), &mut memory, ptx::Options::default())?;
//! let mut result = [0; 8];
//! memory.read(x, &mut result)?;
//! assert_eq!(result, [2, 0, 0, 0, 10, 0, 0, 0]);
//! # Ok::<(), ptx::Error>(())
//! ```
//!
//! **What it takes**: the text that nvcc makes for compute_80: everything that its front end emits for ordinary
//! kernels, with `cp.async`, `ldmatrix`, `mma.sync`, shuffles, votes, atomics and named barriers. An instruction,
//! directive or modifier that is not known is an error when the module is loaded. Not there: `wgmma`, TMA, mbarriers,
//! clusters, textures, recursion, calls through pointers.
//!
//! **What it finds**, each an error with kernel, block, thread and line: accesses outside of live allocations or not
//! aligned; reads of bytes that nobody wrote, in global and shared memory (shared memory starts unwritten, and what
//! `cp.async` copies counts as unwritten until the thread has waited for it); threads of a warp that do not come to a
//! shuffle or `mma`, or have ended; wrong member masks; barriers in divergent code; deadlocks; races in shared memory.
//! Between barriers, warps and threads run in an order that depends on [`Options::seed`]: a missing barrier shows as
//! one of these errors or as results that depend on the seed.
//!
//! **What it does not find**: races in global memory (other than by their results), the device's weaker ordering of
//! memory, the errors of approximate instructions (computed exactly here), the order of sums inside `mma` (see
//! `exec/mma.rs`), and anything about speed; [`Report`] has counts of bytes, sectors and bank conflicts.

mod arithmetic;
mod error;
mod exec;
mod lower;
mod memory;
mod module;
mod parse;
mod program;
mod types;

pub use error::{Error, Fault, Result};
pub use exec::{Options, Report, launch};
pub use memory::Memory;
pub use module::Module;
pub use program::Param;
