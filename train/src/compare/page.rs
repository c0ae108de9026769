//! A comparison as a page: curves laid over each other, and how far they are apart.

use firebox_console::numbers::magnitude;
use firebox_console::report::{Chart, Page, Scale, Series, Verdict};

use super::text::{NORMAL, busiest};
use super::{Comparison, DeviceRun, Limits, MARGIN, StepRecord};

/// Where a difference of nothing is drawn: below what f32 can tell apart.
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
            "{}: the first {steps} of {run_steps} steps, seed {seed}; the same weights and the same data on each device",
            config.display()
        ));
        for run in &self.devices {
            page = page.summary(self.judgement(run), self.sentence(run));
        }
        if let Some(control) = self.control_sentence() {
            page = page.summary(Verdict::Good, control);
        }
        page = page.table(self.devices_table());
        if self.longest() == 0 {
            return page;
        }
        page = page
            .section("Loss")
            .chart(self.curves("Training loss", "nats per token", |step| step.loss))
            .chart(self.differences())
            .text(NORMAL)
            .section("Gradient and routers")
            .chart(
                self.curves("Gradient norm, before clipping", "norm", |step| {
                    step.gradient_norm
                }),
            );
        if self.has_routers() {
            let chart = self.curves("The busiest expert", "load over the mean", |step| {
                busiest(&step.layers)
            });
            page = page.chart(chart.note("In the layer where it is largest; 1 is even."));
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

    fn differences(&self) -> Chart {
        let title = format!("How far the loss is from that of {}", self.first());
        let chart = Chart::new(title, "step", "difference / loss", Scale::Log).note(format!(
            "A device above the limit is at fault: the tolerance of {}, or {MARGIN} times the furthest that the control \
             has come by then. Equal losses are drawn at {FLOOR:.0e}.",
            magnitude(self.tolerance)
        ));
        // The first device has no points, and keeps its colour.
        let chart = self.drawn().fold(chart, |chart, run| {
            chart.series(Series::new(&run.device, points(run)))
        });
        let limits = Limits::new(self.tolerance, self.control.as_ref());
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
