//! A comparison as a page: curves laid over each other, and how far they are apart.

use firebox_model::report::{Chart, Page, Scale, Series};

use super::text::{NORMAL, busiest};
use super::{Comparison, DeviceRun, StepRecord};

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
        page = page.table(self.devices_table());
        if self.longest() == 0 {
            return page;
        }
        page = page
            .section("Loss")
            .chart(
                self.curves("Training loss", "nats per token", Scale::Linear, |step| {
                    step.loss
                }),
            )
            .chart(self.differences());
        page = page.text(NORMAL);
        page = page.section("Gradient and routers").chart(self.curves(
            "Gradient norm, before clipping",
            "norm",
            Scale::Linear,
            |step| step.gradient_norm,
        ));
        if self
            .devices
            .iter()
            .flat_map(|run| &run.steps)
            .any(|step| !step.layers.is_empty())
        {
            page = page.chart(
                self.curves(
                    "The busiest expert",
                    "load over the mean",
                    Scale::Linear,
                    |step| busiest(&step.layers),
                )
                .note("In the layer where it is largest; 1 is even."),
            );
        }
        page.section("Step by step").table(self.steps_table())
    }

    fn curves(
        &self,
        title: &str,
        label: &str,
        scale: Scale,
        value: fn(&StepRecord) -> f64,
    ) -> Chart {
        let runs = self.devices.iter().filter(|run| !run.steps.is_empty());
        runs.fold(Chart::new(title, "step", label, scale), |chart, run| {
            let points = run.steps.iter().map(|step| (step.step as f64, value(step)));
            chart.series(Series::new(&run.device, points))
        })
    }

    fn differences(&self) -> Chart {
        let first = self.devices.first().map_or("", |run| &run.device);
        let title = format!("How far the loss is from that of {first}");
        let chart = Chart::new(title, "step", "difference / loss", Scale::Log)
            .limit("tolerance", self.tolerance)
            .note(format!("Equal losses are drawn at {FLOOR:.0e}."));
        // The first device is drawn too, so that each has the same colour in every chart.
        self.devices
            .iter()
            .filter(|run| !run.steps.is_empty())
            .fold(chart, |chart, run| {
                chart.series(Series::new(&run.device, points(run)))
            })
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
