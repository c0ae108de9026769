//! A line chart, drawn as SVG.

use maud::{Markup, html};

use super::axis::{Axis, Scale};
use crate::numbers::brief;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
/// Margins for the labels of the axes.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
/// Number of colours in the style sheet; further series reuse them, dashed.
const COLORS: usize = 6;
/// The points of a series are marked if there are at most this many.
const MARKED: usize = 40;

/// A named line.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// x and y; a y that is not finite leaves a gap.
    pub points: Vec<(f64, f64)>,
    color: Option<usize>,
    dashed: bool,
}

impl Series {
    /// A line through points with ascending x.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points: points.into_iter().collect(),
            color: None,
            dashed: false,
        }
    }

    /// Sets the colour's index, so that related lines share a colour; by default it is the index of the line.
    pub fn color(mut self, index: usize) -> Self {
        self.color = Some(index);
        self
    }

    /// Draws the line dashed, to distinguish it from another line of the same colour.
    pub fn dashed(mut self) -> Self {
        self.dashed = true;
        self
    }

    /// The CSS classes of the line and of its points.
    fn classes(&self, position: usize) -> (String, String) {
        let index = self.color.unwrap_or(position);
        let color = format!("color{}", index % COLORS);
        let dashed = if self.dashed || index >= COLORS {
            " dashed"
        } else {
            ""
        };
        (format!("line {color}{dashed}"), color)
    }
}

/// A line chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    title: String,
    x_label: String,
    y_label: String,
    scale: Scale,
    series: Vec<Series>,
    limits: Vec<(String, f64)>,
    note: Option<String>,
}

impl Chart {
    /// A chart without lines; `scale` is the scale of the vertical axis.
    pub fn new(
        title: impl Into<String>,
        x_label: impl Into<String>,
        y_label: impl Into<String>,
        scale: Scale,
    ) -> Self {
        Self {
            title: title.into(),
            x_label: x_label.into(),
            y_label: y_label.into(),
            scale,
            series: Vec::new(),
            limits: Vec::new(),
            note: None,
        }
    }

    /// Adds a line.
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// Adds a level, such as a tolerance, as a dashed line.
    pub fn limit(mut self, name: impl Into<String>, value: f64) -> Self {
        self.limits.push((name.into(), value));
        self
    }

    /// Sets the sentence below the chart.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    pub(super) fn render(&self) -> Markup {
        let points = self.series.iter().flat_map(|series| &series.points);
        let x = Axis::tight(points.clone().map(|point| point.0), 8);
        let heights = points.map(|point| point.1);
        let y = Axis::new(
            self.scale,
            heights.chain(self.limits.iter().map(|limit| limit.1)),
            5,
        );
        let across = |position: f64| LEFT + position * (WIDTH - LEFT - RIGHT);
        let up = |position: f64| HEIGHT - BOTTOM - position * (HEIGHT - TOP - BOTTOM);
        let (floor, right) = (up(0.0), across(1.0));
        let at = |&(left, height): &(f64, f64)| {
            Some((across(x.position(left)?), up(y.position(height)?)))
        };
        html! {
            figure {
                h3 { (self.title) }
                p.legend {
                    @for (index, series) in self.series.iter().enumerate() {
                        span { svg.swatch viewBox="0 0 24 8" { path class=(series.classes(index).0) d="M0 4H24" {} } (series.name) }
                    }
                    @for (name, _) in &self.limits {
                        span { svg.swatch viewBox="0 0 24 8" { path.limit d="M0 4H24" {} } (name) }
                    }
                }
                svg.chart viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(self.title) {
                    @for (position, label) in y.ticks() {
                        path.grid d=(format!("M{LEFT} {:.1}H{right}", up(position))) {}
                        text.end x=(LEFT - 8.0) y=(format!("{:.1}", up(position) + 4.0)) { (label) }
                    }
                    @for (position, label) in x.ticks() {
                        path.tick d=(format!("M{:.1} {floor}v4", across(position))) {}
                        text.middle x=(format!("{:.1}", across(position))) y=(floor + 18.0) { (label) }
                    }
                    path.axis d=(format!("M{LEFT} {floor}H{right}")) {}
                    text.middle x=(across(0.5)) y=(HEIGHT - 6.0) { (self.x_label) }
                    text.middle transform=(format!("translate(13 {}) rotate(-90)", up(0.5))) { (self.y_label) }
                    @for (_, value) in &self.limits {
                        @if let Some(position) = y.position(*value) {
                            path.limit d=(format!("M{LEFT} {:.1}H{right}", up(position))) {}
                        }
                    }
                    @for (index, series) in self.series.iter().enumerate() {
                        path class=(series.classes(index).0) d=(line(series.points.iter().map(at))) {}
                        @if series.points.len() <= MARKED {
                            @for (point, (left, top)) in series.points.iter().filter_map(|point| Some((point, at(point)?))) {
                                circle class=(series.classes(index).1) cx=(format!("{left:.1}")) cy=(format!("{top:.1}")) r="3" {
                                    title { (series.name) ": " (self.x_label) " " (point.0) ", " (brief(point.1)) }
                                }
                            }
                        }
                    }
                }
                @if let Some(note) = &self.note { figcaption { (note) } }
            }
        }
    }
}

/// The SVG path through the points, with a gap at each point that has no position.
fn line(points: impl Iterator<Item = Option<(f64, f64)>>) -> String {
    let mut path = String::new();
    let mut begins = true;
    for point in points {
        if let Some((left, top)) = point {
            let command = if begins { 'M' } else { 'L' };
            path += &format!("{command}{left:.1} {top:.1}");
        }
        begins = point.is_none();
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_interrupts_the_line() {
        let points = [Some((0.0, 1.0)), Some((1.0, 2.0)), None, Some((3.0, 4.0))];
        assert_eq!(line(points.into_iter()), "M0.0 1.0L1.0 2.0M3.0 4.0");
    }

    #[test]
    fn a_chart_draws_every_point_and_its_limit() {
        let chart = Chart::new("Loss <nats>", "step", "nats", Scale::Log)
            .series(Series::new(
                "flex",
                [(0.0, 0.0), (1.0, 1e-6), (2.0, f64::NAN), (3.0, 1e-5)],
            ))
            .series(Series::new("wgpu", [(0.0, 1e-7)]))
            .limit("tolerance", 1e-4);
        let markup = chart.render().into_string();
        assert_eq!(markup.matches("<circle").count(), 4);
        assert_eq!(markup.matches(r#"class="limit""#).count(), 2);
        assert!(
            markup.contains("Loss &lt;nats&gt;") && !markup.contains("NaN"),
            "{markup}"
        );
    }

    #[test]
    fn a_chart_without_points_has_only_axes() {
        let markup = Chart::new("Nothing", "x", "y", Scale::Log)
            .render()
            .into_string();
        assert!(
            !markup.contains("NaN") && !markup.contains("inf"),
            "{markup}"
        );
    }
}
