//! The FFN's gated activation, fused with the stochastic draws.

use super::{Float, THREADS, rows_aligned};
use crate::stream::Launch;
use crate::{Error, Kernel, Module, Slice, SliceMut};
use kernels::philox::{DRAWS_PER_CALL, key};
use kernels::{Activation, Fixed, MaskSite, Positive};

static MODULE: Module = Module { name: "gated_activation", ptx: include_str!("gated_activation.ptx") };

const fn kernel(entry: &'static str) -> Kernel {
    Kernel { module: &MODULE, entry }
}

/// The kernels of a psi, each for f32 and bf16.
struct Kernels {
    forward: [Kernel; 2],
    backward: [Kernel; 2],
}

static RELU: Kernels = Kernels {
    forward: [kernel("gated_activation_relu"), kernel("gated_activation_relu_bf16")],
    backward: [kernel("gated_activation_backward_relu"), kernel("gated_activation_backward_relu_bf16")],
};
static SILU: Kernels = Kernels {
    forward: [kernel("gated_activation_silu"), kernel("gated_activation_silu_bf16")],
    backward: [kernel("gated_activation_backward_silu"), kernel("gated_activation_backward_silu_bf16")],
};
static STOCHASTIC: Kernels = Kernels {
    forward: [kernel("gated_activation_stochastic"), kernel("gated_activation_stochastic_bf16")],
    backward: [kernel("gated_activation_backward_stochastic"), kernel("gated_activation_backward_stochastic_bf16")],
};
static ANY: Kernels = Kernels {
    forward: [kernel("gated_activation_any"), kernel("gated_activation_any_bf16")],
    backward: [kernel("gated_activation_backward_any"), kernel("gated_activation_backward_any_bf16")],
};

/// `h = psi(g) * u`, as [`kernels::activation::gated_activation`]: the draws, and with f32 all bits, are those of the CPU's.
///
/// Shapes: g, u, h `[N, F]`, F = `d_ff`. In bf16, psi and the product are computed in f32 and rounded once. Bytes: 12 an element, 6 in bf16.
#[track_caller]
pub fn gated_activation<T: Float>(
    act: Activation,
    g: Slice<T>,
    u: Slice<T>,
    d_ff: usize,
    h: SliceMut<T>,
) -> Result<(), Error> {
    let len = h.len();
    assert!(
        d_ff > 0 && len.is_multiple_of(d_ff) && g.len() == len && u.len() == len,
        "gated_activation: g {} and u {} elements, h {len}; d_ff {d_ff}",
        g.len(),
        u.len()
    );
    let aligned = [g, u, h.as_slice()].iter().all(|&x| rows_aligned(x, d_ff));
    let psi = Psi::of(act);
    let launch = psi.launch(T::of(&psi.kernels.forward), len, d_ff).arg(g).arg(u);
    // SAFETY: the parameters are those of the kernels; each thread stays within its elements of [N, F].
    unsafe { psi.shape(launch, len, d_ff, aligned).arg(&h).run() }
}

/// The gradients of [`gated_activation`], and h again, in one pass, as [`kernels::activation::gated_activation_backward`].
///
/// Shapes: all `[N, F]`, F = `d_ff`. Bytes: 24 an element, 12 in bf16.
#[allow(clippy::too_many_arguments)] // the backward of a fused kernel has this many tensors
#[track_caller]
pub fn gated_activation_backward<T: Float>(
    act: Activation,
    l1: f32,
    dh: Slice<T>,
    g: Slice<T>,
    u: Slice<T>,
    d_ff: usize,
    dg: SliceMut<T>,
    du: SliceMut<T>,
    h: SliceMut<T>,
) -> Result<(), Error> {
    let len = h.len();
    assert!(
        d_ff > 0 && len.is_multiple_of(d_ff) && [dh.len(), g.len(), u.len(), dg.len(), du.len()] == [len; 5],
        "gated_activation_backward: dh {}, g {}, u {}, dg {} and du {} elements, h {len}; d_ff {d_ff}",
        dh.len(),
        g.len(),
        u.len(),
        dg.len(),
        du.len()
    );
    let operands = [dh, g, u, dg.as_slice(), du.as_slice(), h.as_slice()];
    let aligned = operands.iter().all(|&x| rows_aligned(x, d_ff));
    let psi = Psi::of(act);
    let launch = psi.launch(T::of(&psi.kernels.backward), len, d_ff).arg(l1).arg(dh).arg(g).arg(u);
    // SAFETY: as in `gated_activation`.
    unsafe { psi.shape(launch, len, d_ff, aligned).arg(&dg).arg(&du).arg(&h).run() }
}

/// The kernels for an activation, and what they take first.
struct Psi {
    kernels: &'static Kernels,
    site: Option<(MaskSite, u32)>,
    kinds: Option<[Fixed; 3]>,
}

impl Psi {
    fn of(act: Activation) -> Psi {
        // No draw is below 0, so a site that does not matter will do.
        const NOWHERE: (MaskSite, u32) = (MaskSite { seed: 0, first_token: 0, layer: 0, stream: 0, step: 0 }, 0);
        let fixed = |kind| Psi { kernels: &ANY, site: Some(NOWHERE), kinds: Some([kind; 3]) };
        match act {
            Activation::Relu => Psi { kernels: &RELU, site: None, kinds: None },
            Activation::Silu => Psi { kernels: &SILU, site: None, kinds: None },
            Activation::Gelu => fixed(Fixed::Gelu),
            Activation::Relu2 => fixed(Fixed::Relu2),
            Activation::Tanh => fixed(Fixed::Tanh),
            Activation::Stochastic {
                negative: [Fixed::Relu, Fixed::Silu],
                positive: Positive::Identity,
                threshold,
                site,
            } => Psi { kernels: &STOCHASTIC, site: Some((site, threshold)), kinds: None },
            Activation::Stochastic { negative: [first, second], positive, threshold, site } => {
                // RELU is the identity for what is not negative.
                let positive = if positive == Positive::Identity { Fixed::Relu } else { Fixed::Silu };
                Psi { kernels: &ANY, site: Some((site, threshold)), kinds: Some([first, second, positive]) }
            }
        }
    }

    /// A thread takes the elements of one Philox call, or a single one where it chooses between all psi.
    fn launch<'a>(&self, kernel: &'static Kernel, len: usize, d_ff: usize) -> Launch<'a> {
        let mut launch = Launch::new(kernel, self.threads(len, d_ff).div_ceil(THREADS), THREADS as u32);
        if let Some((MaskSite { seed, first_token, layer, stream, step }, threshold)) = self.site {
            let [key0, key1] = key(seed);
            launch =
                launch.arg(key0).arg(key1).arg(first_token).arg(u32::from(layer) | u32::from(stream) << 16).arg(step);
            launch = launch.arg(threshold);
        }
        // The order of `Fixed` is that of `Kind` in the .cu.
        self.kinds.iter().flatten().fold(launch, |launch, &kind| launch.arg(kind as u32))
    }

    fn threads(&self, len: usize, d_ff: usize) -> usize {
        if self.kinds.is_some() { len } else { len / d_ff * d_ff.div_ceil(DRAWS_PER_CALL) }
    }

    /// d_ff, the number of threads with work, and for those of eight elements, whether they may load 16 bytes at once.
    fn shape<'a>(&self, launch: Launch<'a>, len: usize, d_ff: usize, aligned: bool) -> Launch<'a> {
        let launch = launch.arg(d_ff).arg(self.threads(len, d_ff));
        if self.kinds.is_some() { launch } else { launch.arg(aligned) }
    }
}
