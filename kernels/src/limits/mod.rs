//! The machine's limits, measured: the denominators of "share of peak" in every speed report.
//!
//! Every rate but [`read_pass_gbs`] is the best of many passes, because noise only ever slows down. A limit says what no kernel can beat, not what
//! a kernel reaches: loops here do nothing but the one thing that they measure.

mod arithmetic;
mod memory;

pub use arithmetic::{Dot, dot_gops, fma_gflops};
pub use memory::{Store, copy_gbs, read_gbs, read_pass_gbs, write_gbs};

use std::time::Instant;

/// Passes of a measurement; the best one counts.
const PASSES: usize = 24;

/// Seconds that `f` takes.
fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::teams;

    #[track_caller]
    fn assert_rate(name: &str, team: &crate::Team, rate: f64) {
        let what = format!("limits {name} {} {}t", team.level(), team.threads());
        assert!(rate > 0.0 && rate.is_finite(), "{what}: {rate}");
    }

    #[test]
    fn limits_are_positive_and_finite() {
        let data = vec![1.0; 8 << 20];
        // Two tasks, and ends that are no multiple of a vector.
        let (src, mut copy) = (&data[..(1 << 18) + 7], vec![0.0; (1 << 18) + 7]);
        for team in teams() {
            assert_rate("fma_gflops", &team, fma_gflops(&team));
            assert_rate("read_gbs", &team, read_gbs(&team, &data));
            assert_rate("read_pass_gbs", &team, read_pass_gbs(&team, &data[..(1 << 18) + 7]));
            for store in [Store::Cached, Store::Streaming] {
                copy.fill(f32::NAN);
                let rate = copy_gbs(&team, src, &mut copy, store);
                assert_eq!(rate.is_some(), store.is_present(), "limits copy_gbs {store:?}");
                let Some(rate) = rate else { continue };
                assert_rate("copy_gbs", &team, rate);
                assert!(copy == src, "limits copy_gbs {} {store:?}: not a copy", team.level());
                assert_rate("write_gbs", &team, write_gbs(&team, &mut copy, store).expect("as for copying"));
                assert!(
                    copy.iter().all(|&x| x == copy[0] && x > 1.0),
                    "limits write_gbs {} {store:?}: not written",
                    team.level()
                );
            }
        }
        let team = crate::Team::new(crate::Level::best(), 2);
        for dot in Dot::ALL {
            assert_eq!(dot_gops(&team, dot).is_some(), dot.is_present(), "limits dot_gops {}", dot.name());
            dot_gops(&team, dot).inspect(|&rate| assert_rate(dot.name(), &team, rate));
        }
    }
}
