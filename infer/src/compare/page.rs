//! A comparison as a page.

use firebox_model::parts::Part;
use firebox_model::report::{Chart, Page, Scale, Series, magnitude};

use super::tables::{gradient_table, layer_table};
use super::{Comparison, Differences, Tolerances};

impl Comparison {
    /// The whole comparison on one page, the most important first.
    pub fn page(&self) -> Page {
        let names: Vec<&str> = self.rows.iter().map(|row| row.name.as_str()).collect();
        let title = match names.as_slice() {
            [name] => format!("{name}, measured"),
            [others @ .., last] => format!("{} and {last} compared", others.join(", ")),
            [] => "Nothing compared".to_owned(),
        };
        let mut page = Page::new(title).about(self.about());
        if let Some(reference) = &self.reference {
            page = page.about(format!("The others are compared with {reference}."));
        }
        for (verdict, sentence) in self.summary() {
            page = page.summary(verdict, sentence);
        }
        page = page.section("Speed and memory").table(self.speed_table());
        if self.compared().next().is_some() {
            page = page.section("What comes out").table(self.agreement_table());
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
            page = page.folded("All that it wrote", &failure.log);
        }
        page
    }

    fn layers(&self, page: Page) -> Page {
        let parts = Chart::new(
            "Each part by itself",
            "layer",
            "relative difference",
            Scale::Log,
        )
        .note("Each part is given what the reference computed before it, so that a fault shows where it arises and nowhere else. At the bottom: not a bit differs.");
        let whole = Chart::new(
            "Within the whole network",
            "layers so far",
            "relative difference",
            Scale::Log,
        )
        .note("The state between the layers. Rounding grows slowly from layer to layer; a jump is a fault in the layer before it.");
        let kinds = [Part::Attention, Part::Experts, Part::FeedForward];
        let parts = self.compared().fold(parts, |chart, (row, differences)| {
            kinds.into_iter().fold(chart, |chart, part| {
                let points = of_part(differences, part);
                match points.is_empty() {
                    true => chart,
                    false => chart.series(Series::new(format!("{}, {part}", row.name), points)),
                }
            })
        });
        let whole = self.compared().fold(whole, |chart, (row, differences)| {
            let point = |tokens: fn(&super::Through) -> f64| {
                differences
                    .layers
                    .iter()
                    .map(move |layer| (layer.layer as f64 + 1.0, tokens(&layer.hidden)))
            };
            let untouched = Series::new(
                row.name.clone(),
                point(|through| through.untouched.relative),
            );
            match differences.flips().0 {
                0 => chart.series(untouched),
                _ => chart.series(untouched).series(Series::new(
                    format!("{}, with tokens that flips touched", row.name),
                    point(|through| through.all.relative),
                )),
            }
        });
        let page = page
            .section("Where it arises")
            .chart(self.limited(parts, |tolerances| tolerances.part))
            .chart(self.limited(whole, |tolerances| tolerances.whole));
        self.compared().fold(page, |page, (row, differences)| {
            page.table(layer_table(&row.name, differences))
        })
    }

    fn gradients(&self, page: Page) -> Page {
        let chart = Chart::new("Gradients", "layer", "relative difference", Scale::Log)
            .note("The parameter of each layer whose gradient differs most.");
        let chart = self.compared().fold(chart, |chart, (row, differences)| {
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
            match points.is_empty() {
                true => chart,
                false => chart.series(Series::new(row.name.clone(), points)),
            }
        });
        let mut tables = self
            .compared()
            .filter_map(|(row, differences)| gradient_table(&row.name, differences))
            .peekable();
        if tables.peek().is_none() {
            return page;
        }
        let page = page
            .section("Gradients")
            .chart(self.limited(chart, |tolerances| tolerances.gradient));
        tables.fold(page, Page::table)
    }

    /// The tolerances that the devices are held to, as lines of a chart.
    fn limited(&self, chart: Chart, of: fn(&Tolerances) -> f64) -> Chart {
        let mut limits: Vec<f64> = self
            .compared()
            .map(|(_, differences)| of(&differences.tolerances))
            .collect();
        limits.sort_by(f64::total_cmp);
        limits.dedup();
        limits.into_iter().fold(chart, |chart, limit| {
            chart.limit(format!("tolerance {}", magnitude(limit)), limit)
        })
    }
}

/// Relative differences of a part, by layer.
fn of_part(differences: &Differences, part: Part) -> Vec<(f64, f64)> {
    let name = part.to_string();
    let parts = differences.parts.iter().filter(|part| part.part == name);
    parts
        .filter_map(|part| Some((part.layer? as f64, part.difference.relative)))
        .collect()
}
