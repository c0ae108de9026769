//! A heat map, drawn as SVG: values of many rows over a common axis, such as the load of every expert over time.

use maud::{Markup, html};

use super::axis::Axis;

pub(super) const WIDTH: f64 = 760.0;
/// Margins for the labels. Bars have the same, so that rows of both stand below each other.
pub(super) const LEFT: f64 = 64.0;
pub(super) const RIGHT: f64 = 16.0;
pub(super) const BOTTOM: f64 = 44.0;
/// Height of the largest map.
pub(super) const TALLEST: f64 = 420.0;
/// Height of a row, which shrinks where there are many.
const ROW: f64 = 16.0;
/// Columns that are drawn at most; of more, neighbours share one with their mean.
const COLUMNS: usize = 120;
/// Bands that the style sheet has colours for.
const BANDS: usize = 7;

/// Values of many rows over a common axis, as colours of a few bands.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    title: String,
    x_label: String,
    y_label: String,
    x: Vec<f64>,
    rows: Vec<Vec<f64>>,
    bands: Vec<(f64, String)>,
}

impl HeatMap {
    /// A map without rows over ascending places `x`. A value belongs to the first band whose limit is above it, or else to the last
    /// one; the fourth of seven bands has the colour of what is ordinary.
    ///
    /// # Panics
    ///
    /// When there are not seven bands.
    pub fn new(
        title: impl Into<String>,
        [x_label, y_label]: [&str; 2],
        x: impl IntoIterator<Item = f64>,
        bands: &[(f64, &str)],
    ) -> Self {
        assert_eq!(bands.len(), BANDS, "bands of a heat map");
        let bands = bands.iter().map(|&(limit, name)| (limit, name.to_owned()));
        Self {
            title: title.into(),
            x_label: x_label.to_owned(),
            y_label: y_label.to_owned(),
            x: x.into_iter().collect(),
            rows: Vec::new(),
            bands: bands.collect(),
        }
    }

    /// Adds a row below the others; it is numbered from 0.
    ///
    /// # Panics
    ///
    /// When there is not a value for each place.
    pub fn row(mut self, values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        assert_eq!(values.len(), self.x.len(), "values of a row");
        self.rows.push(values);
        self
    }

    fn band(&self, value: f64) -> usize {
        let found = self.bands.iter().position(|(limit, _)| value < *limit);
        found.unwrap_or(BANDS - 1)
    }

    /// For each band the path of its cells.
    fn paths(&self, height: f64) -> Vec<String> {
        let columns = self.x.len().min(COLUMNS);
        let width = (WIDTH - LEFT - RIGHT) / columns.max(1) as f64;
        let mut paths = vec![String::new(); BANDS];
        for (row, values) in self.rows.iter().enumerate() {
            let mean = |column: usize| {
                let part = column * values.len() / columns..(column + 1) * values.len() / columns;
                let count = part.len() as f64;
                values[part].iter().sum::<f64>() / count
            };
            let of_columns: Vec<usize> =
                (0..columns).map(|column| self.band(mean(column))).collect();
            let mut first = 0;
            for run in of_columns.chunk_by(|a, b| a == b) {
                let (left, top) = (LEFT + first as f64 * width, row as f64 * height);
                let length = run.len() as f64 * width;
                paths[run[0]] +=
                    &format!("M{left:.1} {top:.1}h{length:.1}v{height:.1}h-{length:.1}z");
                first += run.len();
            }
        }
        paths
    }

    pub(super) fn render(&self) -> Markup {
        let rows = self.rows.len().max(1) as f64;
        let height = ROW.min(TALLEST / rows);
        let floor = rows * height;
        let x = Axis::tight(self.x.iter().copied(), 8);
        let across = |position: f64| LEFT + position * (WIDTH - LEFT - RIGHT);
        // With many rows only some are numbered.
        let every = (12.0 / height).ceil().max(1.0) as usize;
        html! {
            figure {
                h3 { (self.title) }
                p.legend {
                    @for (band, (_, name)) in self.bands.iter().enumerate() {
                        span { svg.swatch viewBox="0 0 24 8" { path class=(format!("heat{band}")) d="M0 0H24V8H0z" {} } (name) }
                    }
                }
                svg.chart viewBox=(format!("0 0 {WIDTH} {:.1}", floor + BOTTOM)) role="img" aria-label=(self.title) {
                    @for (band, path) in self.paths(height).iter().enumerate() {
                        @if !path.is_empty() { path class=(format!("heat{band}")) d=(path) {} }
                    }
                    @for row in (0..self.rows.len()).step_by(every) {
                        text.end x=(LEFT - 8.0) y=(format!("{:.1}", (row as f64 + 0.5) * height + 4.0)) { (row) }
                    }
                    @for (position, label) in x.ticks() {
                        path.tick d=(format!("M{:.1} {floor:.1}v4", across(position))) {}
                        text.middle x=(format!("{:.1}", across(position))) y=(format!("{:.1}", floor + 18.0)) { (label) }
                    }
                    text.middle x=(across(0.5)) y=(format!("{:.1}", floor + 38.0)) { (self.x_label) }
                    text.middle transform=(format!("translate(13 {:.1}) rotate(-90)", floor / 2.0)) { (self.y_label) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: [(f64, &str); BANDS] = [
        (1.0, "a"),
        (2.0, "b"),
        (3.0, "c"),
        (4.0, "d"),
        (5.0, "e"),
        (6.0, "f"),
        (f64::INFINITY, "<g>"),
    ];

    fn map(x: usize) -> HeatMap {
        let x = (0..x).map(|x| x as f64);
        HeatMap::new("Load", ["step", "expert"], x, &LIMITS)
    }

    #[test]
    fn neighbours_of_a_band_are_one_cell() {
        let map = map(4).row([0.5, 0.5, 9.0, f64::NAN]).row([3.5; 4]);
        let paths = map.paths(10.0);
        let cells: Vec<usize> = paths.iter().map(|path| path.matches('M').count()).collect();
        assert_eq!(
            cells,
            [1, 0, 0, 1, 0, 0, 1],
            "what is not a number stands out"
        );
        assert_eq!(paths[3], "M64.0 10.0h680.0v10.0h-680.0z");
        assert!(map.render().into_string().contains("&lt;g&gt;"));
    }

    #[test]
    fn many_columns_share_their_mean() {
        let length = 3 * COLUMNS;
        // Each three have the mean 2.5, which is in the third band.
        let values = (0..length).map(|index| [0.5, 2.0, 5.0][index % 3]);
        let paths = map(length).row(values).paths(1.0);
        assert_eq!(paths[2].matches('M').count(), 1);
        assert!(
            paths
                .iter()
                .enumerate()
                .all(|(band, path)| band == 2 || path.is_empty())
        );
    }

    #[test]
    fn a_map_without_rows_has_only_axes() {
        let markup = map(0).render().into_string();
        assert!(
            !markup.contains("NaN") && !markup.contains("inf"),
            "{markup}"
        );
    }
}
