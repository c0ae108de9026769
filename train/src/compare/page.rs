//! A comparison as an HTML page: the curves of all devices, and their relative errors.

use firebox_console::numbers::magnitude;
use firebox_console::report::{Chart, Page, Scale, Series, Verdict};

use super::text::{NORMAL, largest_load};
use super::{Comparison, DeviceRun, Limits, MARGIN, StepRecord};

/// Where an error of 0 is drawn on the logarithmic scale: below the resolution of f32.
const FLOOR: f64 = 1e-9;

impl Comparison {
    /// The page.
    pub fn page(&self) -> Page {
        let Self {
            config,
            steps,
            run_steps,
            seed,
            ..
        } = self;
        let names: Vec<&str> = self.devices.iter().map(|run| run.device.as_str()).collect();
        let mut page = Page::new(format!("Training on {}", names.join(", "))).about(format!(
            "{}: the first {steps} of {run_steps} steps, seed {seed}; the same weights and data on every device",
            config.display()
        ));
        for run in &self.devices {
            page = page.summary(self.judgement(run), self.sentence(run));
        }
        if let Some(sentence) = self.perturbed_sentence() {
            page = page.summary(Verdict::Good, sentence);
        }
        page = page.table(self.devices_table());
        if self.longest() == 0 {
            return page;
        }
        page = page
            .section("Loss")
            .chart(self.curves("Training loss", "nats per token", |step| step.loss))
            .chart(self.errors())
            .text(NORMAL)
            .section("Gradient and routers")
            .chart(
                self.curves("Gradient norm, before clipping", "norm", |step| {
                    step.gradient_norm
                }),
            );
        if self.has_routers() {
            let chart = self.curves("Expert load", "max/mean", |step| largest_load(&step.layers));
            page = page.chart(chart.note("Of the layer with the largest value; 1 is balanced."));
        }
        self.step_tables()
            .into_iter()
            .fold(page.section("Step by step"), Page::table)
    }

    fn curves(&self, title: &str, label: &str, value: fn(&StepRecord) -> f64) -> Chart {
        let chart = Chart::new(title, "step", label, Scale::Linear);
        self.drawn().fold(chart, |chart, run| {
            let points = run.steps.iter().map(|step| (step.step as f64, value(step)));
            chart.series(Series::new(&run.device, points))
        })
    }

    fn errors(&self) -> Chart {
        let title = format!("Relative error of the loss, compared with {}", self.first());
        let chart = Chart::new(title, "step", "relative error", Scale::Log).note(format!(
            "A device above the limit diverges. The limit is the tolerance of {}, or {MARGIN} times the largest error \
             of the perturbed run so far. An error of 0 is drawn at {FLOOR:.0e}.",
            magnitude(self.tolerance)
        ));
        // The first device has no points here; its empty series keeps the colours of the others consistent.
        let chart = self.drawn().fold(chart, |chart, run| {
            chart.series(Series::new(&run.device, points(run)))
        });
        let limits = Limits::new(self.tolerance, self.perturbed.as_ref());
        let limit = (0..self.longest()).map(|step| (step as f64 + 1.0, limits.at(step).0));
        chart.series(Series::new("limit", limit))
    }

    fn drawn(&self) -> impl Iterator<Item = &DeviceRun> {
        self.runs().filter(|run| !run.steps.is_empty())
    }
}

fn points(run: &DeviceRun) -> Vec<(f64, f64)> {
    let losses = run
        .difference
        .iter()
        .flat_map(|difference| &difference.loss);
    let above = losses.map(|difference| difference.max(FLOOR));
    (1..).map(f64::from).zip(above).collect()
}
