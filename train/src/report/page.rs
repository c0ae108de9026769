//! A report as an HTML page.

use firebox_console::numbers::{grouped, percentage, scaled};
use firebox_console::report::{Chart, HeatMap, Page, Scale, Series, Table, Verdict};
use firebox_model::looking::CaptionLoss;

use super::{Recorded, Report};
use crate::metrics::{SourceLoss, TrainRecord, ValidationRecord};

/// Points of a curve; of more, neighbours share one with their mean.
const POINTS: usize = 400;

/// Shares of an expert, relative to the mean.
const SHARES: [(f64, &str); 7] = [
    (0.05, "dead: below 0.05"),
    (0.5, "below 0.5"),
    (0.8, "below 0.8"),
    (1.25, "the mean"),
    (2.0, "below 2"),
    (3.0, "below 3"),
    (f64::INFINITY, "3 times the mean and more"),
];

/// Warnings that are listed.
const LISTED: usize = 200;

impl Report {
    /// The page.
    pub fn page(&self) -> Page {
        let names: Vec<&str> = self.runs.iter().map(|run| run.name.as_str()).collect();
        let mut page = Page::new(format!("Training of {}", names.join(", ")));
        for run in &self.runs {
            page = page.about(run.described());
        }
        for run in &self.runs {
            for (verdict, sentence) in run.sentences() {
                let name = match self.runs.len() {
                    1 => String::new(),
                    _ => format!("{}: ", run.name),
                };
                page = page.summary(verdict, format!("{name}{sentence}"));
            }
        }
        self.parts(page.table(self.runs_table()))
    }

    /// Adds everything but what stands at the top of the page.
    pub(crate) fn parts(&self, mut page: Page) -> Page {
        for run in self.runs.iter().filter(|run| !run.differences.is_empty()) {
            let heading = format!("{} differs from {} in", run.name, self.runs[0].name);
            page = page.folded(&heading, &run.differences.join("\n"));
        }
        page = self.losses(page.section("Loss"));
        page = self.experts(page);
        page = self.steps(page.section("Steps"));
        page = self.ranks(page);
        self.texts(page)
    }

    fn losses(&self, page: Page) -> Page {
        let held_out = |x_label: &str, x: fn(&ValidationRecord) -> f64| {
            let chart = Chart::new(
                format!("Held-out loss over {x_label}"),
                x_label,
                "nats per token",
                Scale::Linear,
            );
            self.runs.iter().fold(chart, |chart, run| {
                let points = run.charted().iter();
                let points =
                    points.map(|record| (x(record), record.validation.whole.nats_per_token));
                chart.series(Series::new(&run.name, points))
            })
        };
        let mut page = page
            .chart(held_out("tokens", |record| record.trained_tokens as f64))
            .chart(held_out("seconds", |record| record.seconds).note(
                "What a person waits for: of two models, the better one is the lower one at the same second.",
            ))
            .chart(self.curves("Training loss", "nats per token", |record| Some(record.loss)));
        let details = self
            .runs
            .iter()
            .flat_map(|run| [run.by_source(), run.by_picture()]);
        for chart in details.flatten() {
            page = page.chart(chart);
        }
        page
    }

    /// A curve over steps for each run.
    fn curves(&self, title: &str, label: &str, value: fn(&TrainRecord) -> Option<f64>) -> Chart {
        let chart = Chart::new(title, "step", label, Scale::Linear);
        self.runs.iter().fold(chart, |chart, run| {
            let points: Vec<_> = run
                .training
                .iter()
                .filter_map(|record| Some((record.step as f64, value(record)?)))
                .collect();
            chart.series(Series::new(&run.name, thinned(&points)))
        })
    }

    fn experts(&self, page: Page) -> Page {
        if !self.runs.iter().any(Recorded::has_experts) {
            return page;
        }
        let mut page = page
            .section("Experts")
            .table(self.experts_table())
            .chart(
                self.curves("Busiest expert", "times the mean", |record| {
                    let shares = record.layers.iter().map(|layer| layer.max_over_mean);
                    shares.reduce(f64::max)
                })
                .note("Of the layer where it is busiest; 1 is even."),
            )
            .chart(self.curves("Dead experts", "experts", |record| {
                let dead = record.layers.iter().map(|layer| layer.dead_experts as f64);
                (!record.layers.is_empty()).then(|| dead.sum())
            }))
            .chart(
                self.curves("Entropy of a token's choice", "of that of even choices", |record| {
                    let entropies = record.layers.iter().filter(|layer| layer.load.len() > 1);
                    let parts =
                        entropies.map(|layer| layer.entropy / (layer.load.len() as f64).ln());
                    parts.reduce(f64::min)
                })
                .note("Of the layer with the lowest: 1 when the router prefers no expert, 0 when it is sure of one."),
            );
        for run in self.runs.iter().filter(|run| run.has_experts()) {
            for layer in run.layers() {
                page = page.heat_map(run.shares(layer));
            }
        }
        page
    }

    fn steps(&self, page: Page) -> Page {
        page.chart(self.curves("Learning rate", "learning rate", |record| {
            Some(record.learning_rate)
        }))
        .chart(
            self.curves("Gradient norm, before clipping", "norm", |record| {
                Some(record.gradient_norm)
            }),
        )
        .chart(self.curves("Tokens per second", "tokens/s", |record| {
            Some(record.tokens_per_second)
        }))
        .chart(self.curves("Operations per second", "GFLOP/s", |record| {
            Some(record.flops_per_second / 1e9)
        }))
        .chart(self.curves("Batch", "tokens", |record| Some(record.batch_tokens as f64)))
    }

    fn texts(&self, mut page: Page) -> Page {
        page = page.section("Data");
        for run in &self.runs {
            page = page.table(run.sources_table());
        }
        let written = self.runs.iter().any(|run| !run.samples.is_empty());
        if written {
            page = page.section("What the model wrote");
        }
        for run in &self.runs {
            for sample in run.samples.iter().rev() {
                let heading = format!("{}, step {}", run.name, grouped(sample.step));
                page = page.folded(&heading, &sample.text);
            }
        }
        for run in self.runs.iter().filter(|run| !run.warnings.is_empty()) {
            let warnings = run.warnings.iter().take(LISTED);
            let lines: Vec<String> = warnings
                .map(|(step, text)| format!("step {step}: {text}"))
                .collect();
            let heading = format!("{}: warnings", run.name);
            page = page.folded(&heading, &lines.join("\n"));
        }
        page
    }
}

impl Recorded {
    fn described(&self) -> String {
        format!(
            "{}: {} parameters, {} active per token, {} steps",
            self.folder.display(),
            scaled(self.parameters as f64),
            scaled(self.active_parameters as f64),
            self.progress()
        )
    }

    /// What a reader wants to know first.
    fn sentences(&self) -> Vec<(Verdict, String)> {
        let mut sentences = Vec::new();
        let losses = self.validations.first().zip(self.best());
        if let Some((first, best)) = losses {
            let [first, loss] = [first, best].map(|record| record.validation.whole.nats_per_token);
            let last = self.validations.last().map_or(best.step, |last| last.step);
            let (verdict, when) = match best.step == last {
                true => (Verdict::Good, "at the end".to_owned()),
                false => (
                    Verdict::Notable,
                    format!("at step {}, and higher since", grouped(best.step)),
                ),
            };
            let text = format!("held-out loss {first:.3} → {loss:.3} nats per token {when}");
            sentences.push((verdict, text));
        }
        match self.warned() {
            Some(text) => sentences.push((Verdict::Bad, text)),
            None if self.has_experts() => {
                sentences.push((Verdict::Good, "no expert collapsed".to_owned()));
            }
            None => {}
        }
        sentences.extend(self.pace());
        sentences
    }

    /// Indices of the layers with experts.
    fn layers(&self) -> Vec<usize> {
        let last = self.last().into_iter().flat_map(|record| &record.layers);
        last.map(|layer| layer.layer).collect()
    }

    /// The share of each expert of a layer over time.
    fn shares(&self, layer: usize) -> HeatMap {
        let of_layer = |record: &TrainRecord| {
            let layer = record.layers.iter().find(|health| health.layer == layer)?;
            let experts = layer.load.len() as f64;
            let shares = layer.load.iter().map(|share| share * experts).collect();
            Some((record.step as f64, shares))
        };
        let (steps, shares): (Vec<f64>, Vec<Vec<f64>>) =
            self.training.iter().filter_map(of_layer).unzip();
        let title = format!("{}, layer {layer}: share of each expert", self.name);
        let map = HeatMap::new(title, ["step", "expert"], steps, &SHARES);
        let experts = shares.first().map_or(0, Vec::len);
        (0..experts).fold(map, |map, expert| {
            let of_expert = |shares: &Vec<f64>| shares.get(expert).copied().unwrap_or(f64::NAN);
            map.row(shares.iter().map(of_expert))
        })
    }

    /// The held-out loss of each source, where there are several.
    fn by_source(&self) -> Option<Chart> {
        let last = &self.validations.last()?.validation.sources;
        if last.len() < 2 {
            return None;
        }
        let title = format!("{}: held-out loss by source", self.name);
        let chart = Chart::new(title, "step", "bits per byte", Scale::Linear);
        Some(last.iter().fold(chart, |chart, SourceLoss { name, .. }| {
            let points = self.charted().iter().filter_map(|record| {
                let mut sources = record.validation.sources.iter();
                let source = sources.find(|source| source.name == *name)?;
                Some((record.step as f64, source.bits_per_byte))
            });
            chart.series(Series::new(name, points))
        }))
    }

    /// The loss of held-out captions behind their own picture, another one and none, where the model sees.
    fn by_picture(&self) -> Option<Chart> {
        let last = &self.validations.last()?.validation.captions;
        if last.is_empty() {
            return None;
        }
        let title = format!("{}: held-out captions", self.name);
        let chart = Chart::new(title, "step", "nats per token", Scale::Linear).note(
            "As long as the three losses of a kind are equal, the model does not look at pictures.",
        );
        let losses = |loss: &CaptionLoss| [Some(loss.right), loss.other, Some(loss.none)];
        let behind = ["behind their picture", "behind another", "behind none"];
        let kinds = last.iter().map(|loss| loss.held_out);
        Some(kinds.enumerate().fold(chart, |chart, (place, kind)| {
            behind
                .iter()
                .enumerate()
                .fold(chart, |chart, (color, name)| {
                    let points = self.charted().iter().filter_map(|record| {
                        let mut captions = record.validation.captions.iter();
                        let found = captions.find(|loss| loss.held_out == kind)?;
                        Some((record.step as f64, losses(&found.loss)[color]?))
                    });
                    let name = format!("new {}, {name}", kind.plural());
                    let line = Series::new(name, points).color(color);
                    chart.series(if place > 0 { line.dashed() } else { line })
                })
        }))
    }

    fn sources_table(&self) -> Table {
        let table = Table::new(format!("{}: sources", self.name))
            .texts(["source"])
            .numbers(["tokens", "part of training"]);
        self.sources.iter().fold(table, |table, source| {
            let (tokens, part) = (grouped(source.tokens), percentage(source.part));
            table.row([source.name.as_str().into(), tokens.into(), part.into()])
        })
    }
}

/// At most [`POINTS`] points, each the mean of its neighbours.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(POINTS).max(1);
    let mean = |values: &[(f64, f64)]| {
        let count = values.len() as f64;
        let sum = values
            .iter()
            .fold((0.0, 0.0), |(x, y), value| (x + value.0, y + value.1));
        (sum.0 / count, sum.1 / count)
    };
    points.chunks(size).map(mean).collect()
}
