//! The FFN's gated activation, fused with the stochastic draws.

use super::{Float, THREADS, rows_aligned};
use crate::stream::Launch;
use crate::{Error, Kernel, Module, Slice, SliceMut};
use kernels::philox::{DRAWS_PER_CALL, key};
use kernels::{Activation, Fixed, MaskSite, Positive, activation};

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
    activation::check([g.len(), u.len(), len], d_ff);
    let aligned = [g, u, h.as_slice()].iter().all(|&x| rows_aligned(x, d_ff));
    let psi = Psi::of(act);
    let launch = psi.launch(T::of(&psi.kernels().forward), len, d_ff).arg(g).arg(u);
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
    activation::check_backward([dh.len(), g.len(), u.len(), dg.len(), du.len(), len], d_ff);
    let operands = [dh, g, u, dg.as_slice(), du.as_slice(), h.as_slice()];
    let aligned = operands.iter().all(|&x| rows_aligned(x, d_ff));
    let psi = Psi::of(act);
    let launch = psi.launch(T::of(&psi.kernels().backward), len, d_ff).arg(l1).arg(dh).arg(g).arg(u);
    // SAFETY: as in `gated_activation`.
    unsafe { psi.shape(launch, len, d_ff, aligned).arg(&dg).arg(&du).arg(&h).run() }
}

/// An activation as the kernels that choose for every element have it.
pub(super) struct Any {
    site: MaskSite,
    threshold: u32,
    /// For x < 0 the first two, and what is not negative goes through the third.
    kinds: [Fixed; 3],
}

impl Any {
    pub(super) fn of(act: Activation) -> Any {
        // No draw is below 0, so a site that does not matter will do.
        const NOWHERE: MaskSite = MaskSite { seed: 0, first_token: 0, layer: 0, stream: 0, step: 0 };
        let fixed = |kind| Any { site: NOWHERE, threshold: 0, kinds: [kind; 3] };
        match act {
            Activation::Relu => fixed(Fixed::Relu),
            Activation::Silu => fixed(Fixed::Silu),
            Activation::Gelu => fixed(Fixed::Gelu),
            Activation::Relu2 => fixed(Fixed::Relu2),
            Activation::Tanh => fixed(Fixed::Tanh),
            Activation::Stochastic { negative: [first, second], positive, threshold, site } => {
                // RELU is the identity for what is not negative.
                let positive = if positive == Positive::Identity { Fixed::Relu } else { Fixed::Silu };
                Any { site, threshold, kinds: [first, second, positive] }
            }
        }
    }

    /// The parameters of the site and its threshold.
    fn site<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        let MaskSite { seed, first_token, layer, stream, step } = self.site;
        let [key0, key1] = key(seed);
        let launch = launch.arg(key0).arg(key1).arg(first_token).arg(u32::from(layer) | u32::from(stream) << 16);
        launch.arg(step).arg(self.threshold)
    }

    /// These, and the kinds: the order of `Fixed` is that of `Kind` in psi.cuh.
    pub(super) fn args<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        self.kinds.iter().fold(self.site(launch), |launch, &kind| launch.arg(kind as u32))
    }
}

/// Which kernels run an activation.
pub(super) enum Psi {
    /// Compiled for themselves, as is the paper's pair.
    Relu,
    Silu,
    Stochastic(Any),
    /// All others.
    Any(Any),
}

impl Psi {
    pub(super) fn of(act: Activation) -> Psi {
        match act {
            Activation::Relu => Psi::Relu,
            Activation::Silu => Psi::Silu,
            Activation::Stochastic { negative: [Fixed::Relu, Fixed::Silu], positive: Positive::Identity, .. } => {
                Psi::Stochastic(Any::of(act))
            }
            _ => Psi::Any(Any::of(act)),
        }
    }

    fn kernels(&self) -> &'static Kernels {
        match self {
            Psi::Relu => &RELU,
            Psi::Silu => &SILU,
            Psi::Stochastic(_) => &STOCHASTIC,
            Psi::Any(_) => &ANY,
        }
    }

    fn launch<'a>(&self, kernel: &'static Kernel, len: usize, d_ff: usize) -> Launch<'a> {
        let launch = Launch::new(kernel, self.threads(len, d_ff).div_ceil(THREADS), THREADS as u32);
        self.args(launch)
    }

    /// The parameters that come first.
    pub(super) fn args<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        match self {
            Psi::Relu | Psi::Silu => launch,
            Psi::Stochastic(site) => site.site(launch),
            Psi::Any(any) => any.args(launch),
        }
    }

    /// Threads with work: one for the elements of a Philox call, or for a single one where it chooses between all psi.
    fn threads(&self, len: usize, d_ff: usize) -> usize {
        if let Psi::Any(_) = self { len } else { len / d_ff * d_ff.div_ceil(DRAWS_PER_CALL) }
    }

    /// d_ff, the number of those threads, and if they have eight elements, whether they may load 16 bytes at once.
    fn shape<'a>(&self, launch: Launch<'a>, len: usize, d_ff: usize, aligned: bool) -> Launch<'a> {
        let launch = launch.arg(d_ff).arg(self.threads(len, d_ff));
        if let Psi::Any(_) = self { launch } else { launch.arg(aligned) }
    }
}
