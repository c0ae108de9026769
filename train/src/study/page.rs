//! A study's result as an HTML page: the comparison, and below it the report of all runs.

use firebox_console::report::{Chart, Page, Scale, Series};

use super::StudyResult;

impl StudyResult {
    /// The page.
    pub fn page(&self) -> Page {
        let names: Vec<&str> = self
            .compared
            .iter()
            .map(|compared| compared.name.as_str())
            .collect();
        let study = &self.study;
        let mut page = Page::new(names.join(", ")).about(format!(
            "{}: equal {}, seeds {:?}",
            study.config.display(),
            study.equal,
            study.seeds
        ));
        for variant in &study.variants {
            let set = match variant.set.is_empty() {
                true => "as configured".to_owned(),
                false => variant.set.join(", "),
            };
            page = page.about(format!("{}: {set}", variant.name));
        }
        for (verdict, sentence) in self.sentences() {
            page = page.summary(verdict, sentence);
        }
        let page = page.table(self.table()).chart(self.losses());
        self.report.parts(page)
    }

    /// The held-out loss of every run over time, in a colour for each variant.
    fn losses(&self) -> Chart {
        let chart = Chart::new(
            "Held-out loss over seconds of training",
            "seconds",
            self.unit.to_string(),
            Scale::Linear,
        );
        let by_variant = self.report.runs.chunks(self.study.seeds.len()).enumerate();
        by_variant.fold(chart, |chart, (color, runs)| {
            runs.iter().fold(chart, |chart, run| {
                let points = run.charted().iter();
                let points =
                    points.map(|record| (record.seconds, self.unit.of(&record.validation.whole)));
                chart.series(Series::new(&run.name, points).color(color))
            })
        })
    }
}
