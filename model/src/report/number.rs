//! Numbers as a reader wants them.

/// A whole number with its thousands apart: `4,096`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_read_well() {
        for (number, text) in [
            (0, "0"),
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

    proptest! {
        #[test]
        fn brief_keeps_three_digits(number in 1e-4f64..1e14) {
            let read: f64 = brief(number).replace(',', "").parse().unwrap();
            prop_assert!((read - number).abs() <= 0.006 * number, "{number} became {read}");
        }
    }
}
