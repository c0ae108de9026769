//! Values of options, as numbers within a range.

fn number(text: &str, allowed: impl Fn(f64) -> bool, what: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && allowed(value) => Ok(value),
        _ => Err(format!("must be a number {what}")),
    }
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= 1 => Ok(number),
        _ => Err("must be an integer of at least 1".to_owned()),
    }
}

pub(super) fn not_negative(text: &str) -> Result<f64, String> {
    number(text, |value| value >= 0.0, "of at least 0")
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    number(text, |value| value > 0.0, "greater than 0")
}

pub(super) fn penalty(text: &str) -> Result<f64, String> {
    number(text, |value| (-2.0..=2.0).contains(&value), "from -2 to 2")
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    number(text, |value| (0.0..=1.0).contains(&value), "from 0 to 1")
}

pub(super) fn share_above_zero(text: &str) -> Result<f64, String> {
    let allowed = |value| value > 0.0 && value <= 1.0;
    number(text, allowed, "greater than 0 and at most 1")
}
