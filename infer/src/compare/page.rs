//! A comparison as an HTML report.

use firebox_console::numbers::magnitude;
use firebox_console::report::{Chart, Page, Scale, Series};
use firebox_model::parts::Part;

use super::tables::{LAYERS, gradient_table, layer_table};
use super::{Comparison, Differences, NetworkDifference, Tolerances};

/// Maximum number of devices in a title.
const NAMED: usize = 4;

impl Comparison {
    /// The whole comparison on one page, the most important results first.
    pub fn page(&self) -> Page {
        let names: Vec<&str> = self.rows.iter().map(|row| row.name.as_str()).collect();
        let title = match names.as_slice() {
            [name] => format!("{name}, measured"),
            names if names.len() > NAMED => format!("{} devices and types compared", names.len()),
            [others @ .., last] => format!("{} and {last} compared", others.join(", ")),
            [] => "No devices compared".to_owned(),
        };
        let mut page = Page::new(title).about(self.about());
        if let Some(reference) = &self.reference {
            page = page.about(format!("{reference} is the reference."));
        }
        for (verdict, sentence) in self.summary() {
            page = page.summary(verdict, sentence);
        }
        page = page.section("Speed and memory").table(self.speed_table());
        if self.compared().next().is_some() {
            page = page.section("Results").table(self.agreement_table());
            page = self.layers(page);
            page = self.gradients(page);
        }
        for (row, failure) in self.failed() {
            page = page
                .section(&format!("{} failed", row.name))
                .text(&failure.reason);
            if let Some(hint) = &failure.hint {
                page = page.text(&format!("Hint: {hint}"));
            }
            page = page.folded("Standard error", &failure.log);
        }
        page
    }

    fn layers(&self, page: Page) -> Page {
        let parts = Chart::new(
            "Each part alone",
            "layer",
            "relative difference",
            Scale::Log,
        )
        .note("Each part is given the reference's inputs, so that a fault shows only where it originates. Points at the bottom: bit-identical.");
        let whole = Chart::new(
            "Within the whole network",
            "layers",
            "relative difference",
            Scale::Log,
        )
        .note("The residual stream between the layers, over the tokens that no flip has touched. Rounding errors grow slowly from layer to layer; a jump indicates a fault in the layer before it.");
        let kinds = [
            Part::Attention,
            Part::CrossAttention,
            Part::Experts,
            Part::FeedForward,
        ];
        let parts =
            self.compared()
                .enumerate()
                .fold(parts, |chart, (color, (row, differences))| {
                    kinds.into_iter().fold(chart, |chart, part| {
                        let points = of_part(differences, part);
                        let series =
                            Series::new(format!("{}, {part}", row.name), points).color(color);
                        match part {
                            _ if series.points.is_empty() => chart,
                            Part::Attention => chart.series(series),
                            _ => chart.series(series.dashed()),
                        }
                    })
                });
        let whole =
            self.compared()
                .enumerate()
                .fold(whole, |chart, (color, (row, differences))| {
                    let series = |name: String, of: fn(&NetworkDifference) -> f64| {
                        let points = differences
                            .layers
                            .iter()
                            .map(|layer| (layer.layer as f64 + 1.0, of(&layer.hidden)));
                        Series::new(name, points).color(color)
                    };
                    let chart =
                        chart.series(series(row.name.clone(), |state| state.untouched.relative));
                    match differences.flips().0 {
                        0 => chart,
                        _ => chart.series(
                            series(format!("{}, all tokens", row.name), |state| {
                                state.all.relative
                            })
                            .dashed(),
                        ),
                    }
                });
        let page = page
            .section("By layer")
            .text(LAYERS)
            .chart(self.limited(parts, |_| true, |tolerances| tolerances.part))
            .chart(self.limited(whole, |_| true, |tolerances| tolerances.whole));
        self.compared().fold(page, |page, (row, differences)| {
            page.table(layer_table(&row.name, differences))
        })
    }

    fn gradients(&self, page: Page) -> Page {
        let chart = Chart::new("Gradients", "layer", "relative difference", Scale::Log)
            .note("The largest relative difference of a parameter's gradient in each layer.");
        let compared = self.compared().enumerate();
        let chart = compared.fold(chart, |chart, (color, (row, differences))| {
            let layers = 0..differences.layers.len();
            let points: Vec<_> = layers
                .filter_map(|layer| {
                    let gradients = differences.gradients.iter().flatten();
                    let of_layer = gradients.filter(|gradient| gradient.layer == Some(layer));
                    let largest = of_layer
                        .map(|gradient| gradient.difference.relative)
                        .reduce(f64::max)?;
                    Some((layer as f64, largest))
                })
                .collect();
            if points.is_empty() {
                chart
            } else {
                chart.series(Series::new(row.name.clone(), points).color(color))
            }
        });
        let mut tables = self
            .compared()
            .filter_map(|(row, differences)| gradient_table(&row.name, differences))
            .peekable();
        if tables.peek().is_none() {
            return page;
        }
        let page = page.section("Gradients").chart(self.limited(
            chart,
            |differences| differences.gradients.is_some(),
            |tolerances| tolerances.gradient,
        ));
        tables.fold(page, Page::table)
    }

    /// Adds the tolerances of the devices in a chart as lines.
    fn limited(
        &self,
        chart: Chart,
        included: fn(&Differences) -> bool,
        of: fn(&Tolerances) -> f64,
    ) -> Chart {
        let tolerances = self
            .compared()
            .filter(|(_, differences)| included(differences));
        let mut limits: Vec<f64> = tolerances
            .map(|(_, differences)| of(&differences.tolerances))
            .collect();
        limits.sort_by(f64::total_cmp);
        limits.dedup();
        limits.into_iter().fold(chart, |chart, limit| {
            chart.limit(format!("tolerance {}", magnitude(limit)), limit)
        })
    }
}

/// Relative differences of a part, one point per layer.
fn of_part(differences: &Differences, part: Part) -> Vec<(f64, f64)> {
    let name = part.to_string();
    let parts = differences.parts.iter().filter(|part| part.part == name);
    parts
        .filter_map(|part| Some((part.layer? as f64, part.difference.relative)))
        .collect()
}
