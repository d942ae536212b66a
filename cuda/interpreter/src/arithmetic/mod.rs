//! What instructions compute, lane by lane.
//!
//! A register is a row of 32 lanes of 64 bits, zero above its width; whoever writes one masks to that width. An
//! operation takes rows and gives a row, and looks at the low bits of its operands only, as many as its type has.

pub(crate) mod bits;
pub(crate) mod convert;
pub(crate) mod float;
pub(crate) mod integer;
pub(crate) mod small_float;

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// One register of a warp.
pub(crate) type Lanes = [u64; LANES];

/// An operation on rows, compiled from an opcode at load.
pub(crate) enum Map {
    One(Box<Map1>),
    Two(Box<Map2>),
    Three(Box<Map3>),
    Four(Box<Map4>),
}

type Map1 = dyn Fn(&Lanes) -> Lanes + Send + Sync;
type Map2 = dyn Fn(&Lanes, &Lanes) -> Lanes + Send + Sync;
type Map3 = dyn Fn(&Lanes, &Lanes, &Lanes) -> Lanes + Send + Sync;
type Map4 = dyn Fn(&Lanes, &Lanes, &Lanes, &Lanes) -> Lanes + Send + Sync;

impl Map {
    /// Operands that it takes.
    pub fn arity(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Two(_) => 2,
            Self::Three(_) => 3,
            Self::Four(_) => 4,
        }
    }
}

pub(crate) fn one(f: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Map {
    Map::One(Box::new(move |a| std::array::from_fn(|l| f(a[l]))))
}

pub(crate) fn two(f: impl Fn(u64, u64) -> u64 + Send + Sync + 'static) -> Map {
    Map::Two(Box::new(move |a, b| std::array::from_fn(|l| f(a[l], b[l]))))
}

pub(crate) fn three(f: impl Fn(u64, u64, u64) -> u64 + Send + Sync + 'static) -> Map {
    Map::Three(Box::new(move |a, b, c| std::array::from_fn(|l| f(a[l], b[l], c[l]))))
}

pub(crate) fn four(f: impl Fn(u64, u64, u64, u64) -> u64 + Send + Sync + 'static) -> Map {
    Map::Four(Box::new(move |a, b, c, d| std::array::from_fn(|l| f(a[l], b[l], c[l], d[l]))))
}
