//! Long curves made fit for a picture: smoothed, and with no more points than can be seen.

/// A point: what lies on the axis, and the value.
pub type Point = (f64, f64);

/// The mean of each value and its neighbours, `radius` on either side, fewer at the ends. Values from `breaks[i]` (an index) on
/// are not mixed with those before it: a switch stays a step. At the start the sides are equally long, so that a steep fall is not
/// made less.
pub fn smooth(points: &[Point], radius: usize, breaks: &[usize]) -> Vec<Point> {
    let mut smoothed = Vec::with_capacity(points.len());
    let mut ends: Vec<usize> = breaks.iter().copied().filter(|&b| 0 < b && b < points.len()).collect();
    ends.sort_unstable();
    ends.push(points.len());
    let mut from = 0;
    for end in ends {
        let part = &points[from..end];
        // Sums of all values before a place: a window is a difference of two.
        let mut sums = vec![0.0];
        sums.extend(part.iter().scan(0.0, |sum, &(_, y)| {
            *sum += y;
            Some(*sum)
        }));
        for (i, &(x, _)) in part.iter().enumerate() {
            let after = if from == 0 { radius.min(i) } else { radius };
            let (low, high) = (i.saturating_sub(radius), (i + after + 1).min(part.len()));
            smoothed.push((x, (sums[high] - sums[low]) / (high - low) as f64));
        }
        from = end;
    }
    smoothed
}

/// At most about `2 buckets + 2` of the points: the first, the last, and the least and the greatest value of each bucket of
/// neighbours, in their order. A spike of one step is never lost.
pub fn thin(points: &[Point], buckets: usize) -> Vec<Point> {
    if points.len() <= 2 * buckets + 2 {
        return points.to_vec();
    }
    let (first, last) = (points[0], points[points.len() - 1]);
    let inner = &points[1..points.len() - 1];
    let mut kept = vec![first];
    for bucket in 0..buckets {
        let part = &inner[bucket * inner.len() / buckets..(bucket + 1) * inner.len() / buckets];
        let by_value = |a: &(usize, &Point), b: &(usize, &Point)| a.1.1.total_cmp(&b.1.1);
        let least = part.iter().enumerate().min_by(by_value);
        let greatest = part.iter().enumerate().max_by(by_value);
        if let (Some((low, &a)), Some((high, &b))) = (least, greatest) {
            match low.cmp(&high) {
                std::cmp::Ordering::Less => kept.extend([a, b]),
                std::cmp::Ordering::Equal => kept.push(a),
                std::cmp::Ordering::Greater => kept.extend([b, a]),
            }
        }
    }
    kept.push(last);
    kept
}

/// The value below which a share `q` of the values lies. None of none.
pub fn quantile(values: impl IntoIterator<Item = f64>, q: f64) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some(values[(q * last as f64).round() as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(values: impl IntoIterator<Item = f64>) -> Vec<Point> {
        values.into_iter().enumerate().map(|(i, y)| (i as f64, y)).collect()
    }

    #[test]
    fn a_smoothed_line_is_a_line_and_a_switch_a_step() {
        let line = points((0..50).map(|i| 3.0 + 0.5 * i as f64));
        // Sums of fifty values below 28 at a rounding each, twice.
        let bound = 2.0 * 50.0 * f64::EPSILON * 50.0 * 28.0;
        for (a, b) in smooth(&line, 7, &[]).iter().zip(&line[..43]) {
            assert!(a.0 == b.0 && (a.1 - b.1).abs() <= bound, "{a:?} {b:?}");
        }
        let step = points((0..50).map(|i| if i < 30 { 1.0 } else { 2.0 }));
        assert_eq!(smooth(&step, 7, &[30]), step);
        assert_ne!(smooth(&step, 7, &[]), step);
        let noise = points((0..100).map(|i| (i % 2) as f64));
        assert!(smooth(&noise, 10, &[])[10..90].iter().all(|p| (p.1 - 0.5).abs() < 0.03));
        assert_eq!(smooth(&[], 3, &[1]), []);
        assert_eq!(smooth(&points([4.0]), 3, &[0, 1, 9]), points([4.0]));
    }

    #[test]
    fn thinning_keeps_ends_order_and_every_spike() {
        let n = 10_000;
        let wave = |i: usize| (i as f64 * 0.37).sin();
        for spike in [0, 1, 17, 4_999, n - 2, n - 1] {
            let all = points((0..n).map(|i| if i == spike { 9.0 } else { wave(i) }));
            let few = thin(&all, 100);
            assert!(few.len() <= 202, "{} points", few.len());
            assert!(few.contains(&all[spike]) && few[0] == all[0] && few[few.len() - 1] == all[n - 1]);
            assert!(few.windows(2).all(|w| w[0].0 < w[1].0), "out of order");
        }
        let short = points((0..50).map(wave));
        assert_eq!(thin(&short, 100), short);
        // All values equal.
        assert!(thin(&points(vec![1.0; 1000]), 10).len() <= 22);
    }

    #[test]
    fn quantiles() {
        assert_eq!(quantile([3.0, 1.0, 2.0], 0.5), Some(2.0));
        assert_eq!(quantile([], 0.5), None);
    }
}
