use crate::Team;
use crate::simd::map::spans;
use crate::simd::{Kernel, Simd};

/// The indices of the active elements of `g`, ascending, into `active` (its old contents go): those above 0, and NaN, which
/// must not pass for a zero.
///
/// Panics if an index would not fit `u32`.
///
/// Cost: on the caller alone. Compare, compress in register, store whole vectors, advance: about two cycles a vector, 1
/// microsecond for F = 16384, less than it costs to share.
pub fn select_active(team: &Team, g: &[f32], active: &mut Vec<u32>) {
    assert!(u32::try_from(g.len()).is_ok(), "select_active: g has {} elements, indices are u32", g.len());
    active.resize(g.len() + MAX_LANES, 0);
    let n = team.level().dispatch(Select { g, active });
    active.truncate(n);
}

/// Lanes of the widest level: how far beyond the last index a store of a whole vector may reach.
pub(super) const MAX_LANES: usize = 16;

struct Select<'a> {
    g: &'a [f32],
    active: &'a mut [u32],
}

impl Kernel for Select<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        select(s, self.g, 0, self.active)
    }
}

/// Writes `first + i` for each active `g[i]` to the front of `active` and returns how many they are. `active` has
/// [`MAX_LANES`] places more than `g` has elements.
#[inline(always)]
pub(super) fn select<S: Simd>(s: S, g: &[f32], first: u32, active: &mut [u32]) -> usize {
    let mut n = 0;
    for at in spans(s, g.len()) {
        // `min` returns its second operand for NaN: infinity, which is above 0. Lanes beyond the end load as 0.
        let g = s.min(at.load(s, g), s.splat(f32::INFINITY));
        let indices = s.iota_u32(first + at.start() as u32);
        n += s.compress_store_u32(s.lt(s.splat(0.0), g), indices, &mut active[n..]);
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{lengths, teams, uniform};

    #[test]
    fn select_active_matches_reference() {
        for team in teams() {
            let mut active = vec![7; 3];
            for len in lengths() {
                for shift in [-2.0, -0.9, 0.0, 0.5, 2.0] {
                    let mut g: Vec<f32> = uniform(1, len).into_iter().map(|x| x + shift).collect();
                    let special = [0.0, -0.0, f32::NAN, 1e-45, -1e-45, f32::INFINITY, f32::NEG_INFINITY];
                    g.iter_mut().skip(len / 2).zip(special).for_each(|(g, s)| *g = s);
                    select_active(&team, &g, &mut active);
                    let what = format!("select_active {} len {len} shift {shift}", team.level());
                    assert_eq!(active, reference::select_active(&g), "{what}");
                }
            }
        }
    }
}
