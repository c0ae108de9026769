//! Stacked bars, drawn as SVG: what each of several wholes consists of, such as where the time of every rank goes.

use maud::{Markup, html};

use super::axis::{Axis, Scale};
use super::heat_map::{BOTTOM, LEFT, RIGHT, TALLEST, WIDTH};
use crate::numbers::brief;

/// Height of a bar with the space around it, which shrinks where there are many.
const ROW: f64 = 24.0;

/// Horizontal bars that each consist of the same parts, numbered from 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    title: String,
    x_label: String,
    y_label: String,
    parts: Vec<String>,
    bars: Vec<Vec<f64>>,
    note: Option<String>,
}

impl Bars {
    /// No bars of these parts; the style sheet has colours for six.
    pub fn new<P: Into<String>>(
        title: impl Into<String>,
        [x_label, y_label]: [&str; 2],
        parts: impl IntoIterator<Item = P>,
    ) -> Self {
        Self {
            title: title.into(),
            x_label: x_label.to_owned(),
            y_label: y_label.to_owned(),
            parts: parts.into_iter().map(Into::into).collect(),
            bars: Vec::new(),
            note: None,
        }
    }

    /// Adds a bar below the others. Parts that are no positive numbers are left out.
    ///
    /// # Panics
    ///
    /// When there is not a length for each part.
    pub fn bar(mut self, lengths: impl IntoIterator<Item = f64>) -> Self {
        let lengths = lengths.into_iter();
        let lengths = lengths.map(|length| match length.is_finite() {
            true => length.max(0.0),
            false => 0.0,
        });
        let lengths: Vec<f64> = lengths.collect();
        assert_eq!(lengths.len(), self.parts.len(), "parts of a bar");
        self.bars.push(lengths);
        self
    }

    /// Sets the sentence below the bars.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    pub(super) fn render(&self) -> Markup {
        let rows = self.bars.len().max(1) as f64;
        let height = ROW.min(TALLEST / rows);
        let floor = rows * height;
        let wholes = self.bars.iter().map(|lengths| lengths.iter().sum());
        let axis = Axis::new(Scale::Linear, wholes.chain([0.0]), 8);
        let across = |value: f64| {
            let position = axis.position(value).unwrap_or_default();
            LEFT + position * (WIDTH - LEFT - RIGHT)
        };
        let top = |row: usize| (row as f64 + 0.1) * height;
        // With many rows only some are numbered.
        let every = (12.0 / height).ceil().max(1.0) as usize;
        html! {
            figure {
                h3 { (self.title) }
                p.legend {
                    @for (part, name) in self.parts.iter().enumerate() {
                        span { svg.swatch viewBox="0 0 24 8" { path class=(format!("bar color{part}")) d="M0 0H24V8H0z" {} } (name) }
                    }
                }
                svg.chart viewBox=(format!("0 0 {WIDTH} {:.1}", floor + BOTTOM)) role="img" aria-label=(self.title) {
                    @for (row, lengths) in self.bars.iter().enumerate() {
                        @for (part, (&length, before)) in lengths.iter().zip(starts(lengths)).enumerate().filter(|(_, (length, _))| **length > 0.0) {
                            @let (left, right) = (across(before), across(before + length));
                            path class=(format!("bar color{part}")) d=(format!("M{left:.1} {:.1}H{right:.1}v{:.1}H{left:.1}z", top(row), 0.8 * height)) {
                                title { (self.y_label) " " (row) ", " (self.parts[part]) ": " (brief(length)) }
                            }
                        }
                        @if row % every == 0 {
                            text.end x=(LEFT - 8.0) y=(format!("{:.1}", (row as f64 + 0.5) * height + 4.0)) { (row) }
                        }
                    }
                    path.axis d=(format!("M{LEFT} {floor:.1}H{:.1}", WIDTH - RIGHT)) {}
                    @for (position, label) in axis.ticks() {
                        @let left = LEFT + position * (WIDTH - LEFT - RIGHT);
                        path.tick d=(format!("M{left:.1} {floor:.1}v4")) {}
                        text.middle x=(format!("{left:.1}")) y=(format!("{:.1}", floor + 18.0)) { (label) }
                    }
                    text.middle x=((WIDTH + LEFT - RIGHT) / 2.0) y=(format!("{:.1}", floor + 38.0)) { (self.x_label) }
                    text.middle transform=(format!("translate(13 {:.1}) rotate(-90)", floor / 2.0)) { (self.y_label) }
                }
                @if let Some(note) = &self.note { figcaption { (note) } }
            }
        }
    }
}

/// What lies before each part.
fn starts(lengths: &[f64]) -> impl Iterator<Item = f64> {
    lengths.iter().scan(0.0, |before, length| {
        let start = *before;
        *before += length;
        Some(start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_and_empty_ones_are_left_out() {
        let bars = Bars::new("Time", ["seconds", "rank"], ["computing", "waiting"])
            .bar([4.0, 6.0])
            .bar([10.0, 0.0])
            .bar([f64::NAN, 5.0]);
        let markup = bars.render().into_string();
        // Of 680 wide, the first 4 of 10 and the other 6; a bar takes 0.8 of its row.
        for expected in [
            "M64.0 2.4H336.0v19.2H64.0z",
            "M336.0 2.4H744.0v19.2H336.0z",
            "M64.0 26.4H744.0v19.2H64.0z",
            "M64.0 50.4H404.0v19.2H64.0z",
            "<title>rank 0, waiting: 6.00</title>",
        ] {
            assert!(markup.contains(expected), "{expected} in {markup}");
        }
        assert_eq!(markup.matches("<title>").count(), 4);
        assert!(!markup.contains("NaN"));
    }

    #[test]
    fn no_bars_are_only_axes() {
        let bars = Bars::new("Time", ["seconds", "rank"], ["computing"]);
        let markup = bars.render().into_string();
        assert!(
            !markup.contains("NaN") && !markup.contains("inf"),
            "{markup}"
        );
    }
}
