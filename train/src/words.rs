//! Numbers as people read them.

/// `1234567` as `1,234,567`.
pub fn grouped(n: impl TryInto<u128>) -> String {
    let digits = n.try_into().unwrap_or_default().to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things, named in the singular: `1 step`, `2,048 steps`.
pub fn counted(n: impl TryInto<u128>, thing: &str) -> String {
    let n = grouped(n);
    if n == "1" { format!("{n} {thing}") } else { format!("{n} {thing}s") }
}

/// Bytes in the unit that fits: `1.5 GiB`.
pub fn bytes(n: impl TryInto<u128>) -> String {
    let n = n.try_into().unwrap_or_default() as f64;
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..units.len()).rev().find(|&u| n >= 1024f64.powi(u as i32)).unwrap_or(0);
    if unit == 0 { format!("{n} B") } else { format!("{:.1} {}", n / 1024f64.powi(unit as i32), units[unit]) }
}

/// Seconds as people say them: `48 s`, `6 min 40 s`, `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            ["1", "12", "123", "1234", "1234567"].map(|n| grouped(n.parse::<u64>().unwrap())),
            ["1", "12", "123", "1,234", "1,234,567"]
        );
        assert_eq!([0u32, 1, 2, 2048].map(|n| counted(n, "step")), ["0 steps", "1 step", "2 steps", "2,048 steps"]);
        assert_eq!([0u64, 1023, 1536, 3 << 30].map(bytes), ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]);
        assert_eq!([0.42, 59.0, 61.0, 3725.0].map(duration), ["0.4 s", "59.0 s", "1 min 1 s", "1 h 2 min"]);
    }
}
