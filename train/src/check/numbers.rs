//! Numbers for people: three digits and a unit, or grouped in thousands.

/// A count with three significant digits, such as `1.83 T`; whole numbers below a thousand stay whole.
pub(crate) fn scaled(value: f64) -> String {
    prefixed(value, 1000.0, &["", "k", "M", "B", "T"])
}

pub(crate) fn flop(value: f64) -> String {
    let units = [
        "FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP", "YFLOP",
    ];
    prefixed(value, 1000.0, &units)
}

/// Bytes of text, in powers of a thousand.
pub(super) fn text_bytes(value: u64) -> String {
    prefixed(
        value as f64,
        1000.0,
        &["B", "kB", "MB", "GB", "TB", "PB", "EB"],
    )
}

/// Bytes of memory, in powers of 1024.
pub(crate) fn bytes(value: u128) -> String {
    prefixed(
        value as f64,
        1024.0,
        &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"],
    )
}

fn prefixed(value: f64, base: f64, prefixes: &[&str]) -> String {
    let (mut rest, mut index) = (value, 0);
    // 999.5 would be shown as 1000.
    while rest >= base - 0.5 && index + 1 < prefixes.len() {
        rest /= base;
        index += 1;
    }
    let digits = match rest {
        _ if rest.fract() == 0.0 && index == 0 => 0,
        _ if rest < 9.995 => 2,
        _ if rest < 99.95 => 1,
        _ => 0,
    };
    format!("{rest:.digits$} {}", prefixes[index])
        .trim_end()
        .to_owned()
}

pub(super) fn percent(fraction: f64) -> String {
    // Rounded, so that 0.07 is not 7.000000000000001 %.
    format!("{} %", (fraction * 1e6).round() / 1e4)
}

pub(super) fn percent_of(part: u128, whole: u128) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole as f64)
}

pub(super) fn counted(count: u128, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", thousands(count))
}

pub(super) fn thousands(number: u128) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_prefix() {
        let shown = [0.0, 7.0, 999.0, 999.6, 1000.0, 13_540.0, 2.79e11, 1.83e12].map(scaled);
        assert_eq!(
            shown,
            [
                "0", "7", "999", "1.00 k", "1.00 k", "13.5 k", "279 B", "1.83 T"
            ]
        );
        assert_eq!(
            [12.0, 5.58e11, 2.2e25].map(flop),
            ["12 FLOP", "558 GFLOP", "22.0 YFLOP"]
        );
        assert_eq!(
            [bytes(512), bytes(1024), bytes(1 << 31)],
            ["512 B", "1.00 KiB", "2.00 GiB"]
        );
        assert_eq!(
            [0, 12, 999, 1000, 1_234_567].map(thousands),
            ["0", "12", "999", "1,000", "1,234,567"]
        );
        assert_eq!([0.07, 0.01, 0.325].map(percent), ["7 %", "1 %", "32.5 %"]);
    }
}
