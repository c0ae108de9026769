//! Numbers for people: grouped in thousands, or rounded to a few digits with a unit or a power of ten.

/// An integer with its thousands apart, such as `4,096`.
pub fn grouped(number: impl Into<u128>) -> String {
    let digits = number.into().to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Two digits and a power of ten, for what is read by its order of magnitude: `8.1e-7`; `0` is exactly that.
pub fn magnitude(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        number if number.is_finite() => format!("{number:.1e}"),
        number if number.is_nan() => "not a number".to_owned(),
        number if number > 0.0 => "∞".to_owned(),
        _ => "−∞".to_owned(),
    }
}

/// Three digits without a power of ten where that is short: `0.00123`, `4.57`, `1,830`.
pub fn brief(number: f64) -> String {
    let size = number.abs();
    if number == 0.0 || !number.is_finite() || !(1e-4..1e15).contains(&size) {
        return magnitude(number);
    }
    let sign = if number < 0.0 { "−" } else { "" };
    // Rounded first: 999.9 has four digits before its point.
    let rounded: f64 = format!("{size:.2e}").parse().unwrap_or(size);
    let before = rounded.log10().floor() as i32 + 1;
    if before >= 3 {
        return format!("{sign}{}", grouped(rounded as u64));
    }
    format!("{sign}{rounded:.*}", (3 - before) as usize)
}

/// A count with three significant digits, such as `1.83 T`; integers below a thousand have no decimals.
pub fn scaled(value: f64) -> String {
    prefixed(value, 1000.0, &["", "k", "M", "B", "T"])
}

/// Floating-point operations with three significant digits, such as `558 GFLOP`.
pub fn flop(value: f64) -> String {
    let units = [
        "FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP", "YFLOP",
    ];
    prefixed(value, 1000.0, &units)
}

/// Bytes of text, in powers of a thousand.
pub fn text_bytes(value: u64) -> String {
    prefixed(
        value as f64,
        1000.0,
        &["B", "kB", "MB", "GB", "TB", "PB", "EB"],
    )
}

/// Bytes of memory, in powers of 1024.
pub fn bytes(value: u128) -> String {
    prefixed(
        value as f64,
        1024.0,
        &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"],
    )
}

/// Bytes as a person writes them, such as `5GB` (powers of a thousand), `500 MiB` (powers of 1024) or `1024`; `None`
/// for anything else.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text[..text.len() - unit.len()].parse().ok()?;
    let unit = unit.trim_start();
    let (prefix, base) = match unit.strip_suffix("ib") {
        Some(prefix) if !prefix.is_empty() => (prefix, 1024u64),
        _ => (unit.strip_suffix('b').unwrap_or(unit), 1000),
    };
    let power = ["", "k", "m", "g", "t", "p"]
        .iter()
        .position(|&known| known == prefix)?;
    // An `f64` below 2⁵³ is exact; what is above is rounded, as far as it fits.
    let bytes = number * base.pow(power as u32) as f64;
    (bytes < 2f64.powi(64)).then_some(bytes as u64)
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

/// A fraction of 1 as a percentage of up to four decimals, such as `32.5 %`.
pub fn percent(fraction: f64) -> String {
    // Rounded, so that 0.07 is not 7.000000000000001 %.
    format!("{} %", (fraction * 1e6).round() / 1e4)
}

/// The percentage that a part is of a whole, such as `11.1 %`.
pub fn percent_of(part: u128, whole: u128) -> String {
    percentage(part as f64 / whole as f64)
}

/// A fraction of 1 as a percentage of one decimal, such as `12.5 %`.
pub fn percentage(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}

/// A count and what is counted, such as `1 file` and `1,024 files`.
pub fn counted(count: u128, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(count))
}

/// Two lower-case hexadecimal digits for each byte, as hashes are written.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_read_well() {
        for (number, text) in [
            (0u64, "0"),
            (999, "999"),
            (4096, "4,096"),
            (1234567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
        for (number, text) in [
            (0.0, "0"),
            (8.14e-7, "8.1e-7"),
            (f64::NAN, "not a number"),
            (f64::INFINITY, "∞"),
        ] {
            assert_eq!(magnitude(number), text);
        }
        for (number, text) in [
            (0.001234, "0.00123"),
            (4.567, "4.57"),
            (-45.67, "−45.7"),
            (999.96, "1,000"),
            (1831.4, "1,830"),
            (1e-6, "1.0e-6"),
        ] {
            assert_eq!(brief(number), text);
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("1024", 1024),
            ("5GB", 5_000_000_000),
            ("500 MiB", 500 << 20),
            ("1.5k", 1500),
            ("2kib", 2048),
            ("0B", 0),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "GB",
            "-1",
            "1e3",
            "5 apples",
            "1..2MB",
            "99999999999PB",
            "5 GiBs",
            "1 iB",
        ] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn brief_keeps_three_digits(number in 1e-4f64..1e14) {
            let read: f64 = brief(number).replace(',', "").parse().unwrap();
            prop_assert!((read - number).abs() <= 0.006 * number, "{number} became {read}");
        }
    }

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
            [0u64, 12, 999, 1000, 1_234_567].map(grouped),
            ["0", "12", "999", "1,000", "1,234,567"]
        );
        assert_eq!([0.07, 0.01, 0.325].map(percent), ["7 %", "1 %", "32.5 %"]);
        assert_eq!([0.125, 1.0].map(percentage), ["12.5 %", "100.0 %"]);
        assert_eq!(percent_of(1, 3), "33.3 %");
    }

    #[test]
    fn bytes_have_two_digits_each() {
        assert_eq!(hexadecimal(&[0, 10, 255]), "000aff");
        assert_eq!(hexadecimal(&[]), "");
    }
}
