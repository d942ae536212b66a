//! From values to places on an axis, and the round numbers that stand beside it.

/// How values lie on an axis, from its low end to its high end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// In proportion.
    Linear {
        /// At the low end.
        low: f64,
        /// At the high end, above `low`.
        high: f64,
    },
    /// In proportion to the logarithm.
    Log {
        /// At the low end, above 0.
        low: f64,
        /// At the high end, above `low`.
        high: f64,
    },
}

impl Scale {
    /// From the least to the greatest of the values, as they are. A single value gets room on both sides, none gets 0 to 1.
    pub fn tight(values: impl IntoIterator<Item = f64>) -> Scale {
        let finite = values.into_iter().filter(|v| v.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        match high - low {
            range if range > 0.0 => Scale::Linear { low, high },
            _ if low > high => Scale::Linear { low: 0.0, high: 1.0 },
            _ if low == 0.0 => Scale::Linear { low: 0.0, high: 1.0 },
            _ => Scale::Linear { low: low - 0.1 * low.abs(), high: low + 0.1 * low.abs() },
        }
    }

    /// [`tight`](Scale::tight), opened to round numbers: both ends are among the [`ticks`](Scale::ticks) of as many intervals.
    pub fn round(values: impl IntoIterator<Item = f64>, intervals: usize) -> Scale {
        let (low, high) = Scale::tight(values).ends();
        let mut step = round_step(high - low, intervals);
        loop {
            // A value that is round but for its rounding is round.
            let (from, to) = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
            // Opened, it may want wider intervals.
            let needed = round_step(to - from, intervals);
            if needed <= step * (1.0 + 1e-9) {
                return Scale::Linear { low: from, high: to };
            }
            step = needed;
        }
    }

    /// Logarithmic, from the least to the greatest of the values above 0.
    pub fn log(values: impl IntoIterator<Item = f64>) -> Scale {
        match Scale::tight(values.into_iter().filter(|&v| v > 0.0)) {
            Scale::Linear { low, high } if low > 0.0 => Scale::Log { low, high },
            _ => Scale::Log { low: 0.1, high: 1.0 },
        }
    }

    /// The ends.
    pub fn ends(&self) -> (f64, f64) {
        match *self {
            Scale::Linear { low, high } | Scale::Log { low, high } => (low, high),
        }
    }

    /// The place of a value: 0 at the low end, 1 at the high end, beyond them outside.
    pub fn place(&self, value: f64) -> f64 {
        match *self {
            Scale::Linear { low, high } => (value - low) / (high - low),
            Scale::Log { low, high } => (value.max(f64::MIN_POSITIVE) / low).ln() / (high / low).ln(),
        }
    }

    /// The round numbers within the ends, at most about `count`: multiples of 1, 2 or 5 times a power of ten, not closer than
    /// `least_step`. On a logarithmic axis 1, 2, 5, 10, .. or the powers of ten alone.
    pub fn ticks(&self, count: usize, least_step: f64) -> Vec<f64> {
        let (low, high) = self.ends();
        if let Scale::Log { .. } = self {
            let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
            for mantissas in [&[1.0, 2.0, 5.0][..], &[1.0]] {
                let all = decades.clone().flat_map(|d| mantissas.iter().map(move |m| m * 10f64.powi(d)));
                let inside: Vec<f64> = all.filter(|v| (low..=high).contains(v)).collect();
                if (2..=count).contains(&inside.len()) {
                    return inside;
                }
            }
        }
        let step = round_step(high - low, count).max(least_step);
        // Multiples by their number: adding the step would gather its rounding.
        let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
        (first..=last).map(|i| i as f64 * step).collect()
    }
}

/// The least of 1, 2, 5 times a power of ten of which at most `intervals` fit into the range.
fn round_step(range: f64, intervals: usize) -> f64 {
    let rough = range / intervals.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let mantissas = [1.0, 2.0, 5.0, 10.0].into_iter();
    mantissas.map(|m| m * power).find(|&step| step >= rough * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

/// Ticks as text: with the decimals that tell them apart, thousands grouped, a true minus; in millions from 1 M on.
pub fn labels(ticks: &[f64]) -> Vec<String> {
    if ticks.iter().any(|v| v.abs() >= 1e6) {
        let millions: Vec<f64> = ticks.iter().map(|v| v / 1e6).collect();
        return labels(&millions)
            .into_iter()
            .map(|text| if text == "0" { text } else { format!("{text} M") })
            .collect();
    }
    let decimals = ticks.iter().map(|&v| decimals_of(v)).max().unwrap_or(0);
    let same = ticks.windows(3).all(|w| ((w[2] - w[1]) - (w[1] - w[0])).abs() < 1e-6 * (w[2] - w[0]).abs());
    let text = |&v: &f64| if same { number(v, decimals) } else { number(v, decimals_of(v)) };
    ticks.iter().map(text).collect()
}

/// The decimals that a round number needs, at most 9.
fn decimals_of(value: f64) -> usize {
    (0..9)
        .find(|&d| {
            let scaled = value.abs() * 10f64.powi(d as i32);
            (scaled - scaled.round()).abs() < 1e-6 * scaled.max(1e-3)
        })
        .unwrap_or(9)
}

/// A number with this many decimals, thousands grouped from 1,000 on, and a true minus.
pub fn number(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let mut out = String::new();
    if value < 0.0 && text.bytes().any(|b| (b'1'..=b'9').contains(&b)) {
        out.push('\u{2212}');
    }
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// A number with about four significant digits, for tables and pop-ups.
pub fn short(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let digits = value.abs().log10().floor() as i32;
    match digits {
        ..=-5 => format!("{value:.2e}").replace('-', "\u{2212}"),
        _ => number(value, (3 - digits).clamp(0, 7) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        for (low, high, count, expected) in [
            (0.0, 1500.0, 5, &["0", "500", "1,000", "1,500"][..]),
            (1.33, 2.47, 6, &["1.4", "1.6", "1.8", "2.0", "2.2", "2.4"]),
            (0.0, 0.002, 4, &["0.0000", "0.0005", "0.0010", "0.0015", "0.0020"]),
            (-0.03, 0.04, 5, &["\u{2212}0.02", "0.00", "0.02", "0.04"]),
            (0.0, 12_400.0, 4, &["0", "5,000", "10,000"]),
            (0.0, 3e7, 3, &["0", "10 M", "20 M", "30 M"]),
        ] {
            let ticks = Scale::Linear { low, high }.ticks(count, 0.0);
            assert_eq!(labels(&ticks), expected, "{low} to {high}");
        }
        // Steps of a run are whole.
        assert_eq!(Scale::Linear { low: 0.0, high: 2.0 }.ticks(5, 1.0), [0.0, 1.0, 2.0]);
        // Any range has some ticks, none outside, and not many more than asked for.
        for exponent in -12..12 {
            for mantissa in [1.0, 1.7, 3.3, 9.99] {
                let range = mantissa * 10f64.powi(exponent);
                for low in [0.0, -0.4 * range, 17.3 * range] {
                    let scale = Scale::Linear { low, high: low + range };
                    let ticks = scale.ticks(5, 0.0);
                    assert!((2..=6).contains(&ticks.len()), "{low} + {range}: {ticks:?}");
                    assert!(ticks.iter().all(|&t| (-1e-6..=1.0 + 1e-6).contains(&scale.place(t))), "{low} + {range}");
                }
            }
        }
    }

    #[test]
    fn logarithmic_ticks() {
        let ticks = |low, high| labels(&Scale::Log { low, high }.ticks(6, 0.0));
        assert_eq!(ticks(0.3, 14.7), ["0.5", "1", "2", "5", "10"]);
        assert_eq!(ticks(0.002, 90.0), ["0.01", "0.1", "1", "10"]);
        // Too short for powers: equal steps.
        assert_eq!(ticks(0.61, 0.93), ["0.7", "0.8", "0.9"]);
        let scale = Scale::Log { low: 0.01, high: 100.0 };
        assert!((scale.place(1.0) - 0.5).abs() < 1e-15 && scale.place(0.0) < -10.0);
    }

    #[test]
    fn scales_of_few_values() {
        assert_eq!(Scale::tight([]), Scale::Linear { low: 0.0, high: 1.0 });
        assert_eq!(Scale::tight([0.0, f64::NAN]), Scale::Linear { low: 0.0, high: 1.0 });
        assert_eq!(Scale::tight([5.0]), Scale::Linear { low: 4.5, high: 5.5 });
        assert_eq!(Scale::tight([-5.0]), Scale::Linear { low: -5.5, high: -4.5 });
        assert_eq!(Scale::round([0.2, 9.7], 5), Scale::Linear { low: 0.0, high: 10.0 });
        assert_eq!(Scale::round([1.0, 3.0], 2), Scale::Linear { low: 1.0, high: 3.0 });
        // Opened by the step of its own length, the next would have eight intervals.
        for (low, high) in [(1.19, 2.61), (0.01, 0.99), (-3.0, 97.0), (1e-7, 3.7e-7), (12.0, 12.1)] {
            let scale = Scale::round([low, high], 7);
            let (ticks, (from, to)) = (scale.ticks(7, 0.0), scale.ends());
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * (to - from);
            assert!(
                from <= low && high <= to && near(ticks[0], from) && near(ticks[ticks.len() - 1], to),
                "{scale:?} {ticks:?}"
            );
        }
        assert_eq!(Scale::log([0.0, -3.0]), Scale::Log { low: 0.1, high: 1.0 });
    }

    #[test]
    fn numbers_in_words() {
        let found = [0.0, 0.00002, 0.001234567, 1.23456, 12.3456, 1234.567, -1234567.0].map(short);
        assert_eq!(found, ["0", "2.00e\u{2212}5", "0.001235", "1.235", "12.35", "1,235", "\u{2212}1,234,567"]);
        assert_eq!(number(-0.0004, 2), "0.00");
    }
}
