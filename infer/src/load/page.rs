//! A report as an HTML page.

use firebox_console::numbers::{brief, grouped};
use firebox_console::report::{Chart, Page, Scale, Series, Verdict};

use super::{Load, LoadReport, LoadResult};

/// Points of a line over time.
const POINTS: usize = 60;

impl LoadReport {
    /// All that was measured, on one page.
    pub fn page(&self) -> Page {
        let mut page = Page::new(format!("{} under load", self.model)).about(self.about());
        if let Some(best) = self
            .loads
            .iter()
            .max_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second))
        {
            let text = format!(
                "{} tokens/s at most, with {}",
                brief(best.tokens_per_second),
                best.load
            );
            page = page.summary(Verdict::Good, text);
        }
        let failed: usize = self
            .loads
            .iter()
            .map(|load| load.requests - load.answered)
            .sum();
        if failed > 0 {
            let text = format!("{} requests failed", grouped(failed as u64));
            page = page.summary(Verdict::Bad, text);
        }
        page = page.section("Requests").table(self.throughput());
        if !self.faults().is_empty() {
            page = page.table(self.faults());
        }
        page = page.table(self.latency());
        for is_open in [false, true] {
            page = self.by_load(page, is_open);
        }
        if self.servers().next().is_some() {
            page = page.section("Server").table(self.of_server());
        }
        if !self.experts().is_empty() {
            page = page.table(self.experts()).chart(self.experts_chart());
        }
        page = page.section("Over time");
        self.loads.iter().fold(page, |page, load| {
            page.chart(tokens_over_time(load))
                .chart(requests_over_time(load))
        })
    }

    /// Latency and throughput against the load, where there are several of a kind.
    fn by_load(&self, page: Page, is_open: bool) -> Page {
        let of_kind = |load: &&LoadResult| matches!(load.load, Load::Rate(_)) == is_open;
        let mut loads: Vec<&LoadResult> = self.loads.iter().filter(of_kind).collect();
        if loads.len() < 2 {
            return page;
        }
        // All at once has no rate of its own.
        let at = |load: &LoadResult| match load.load {
            Load::Concurrency(requests) => requests as f64,
            Load::Rate(rate) if rate.is_finite() => rate,
            Load::Rate(_) => load.requests_per_second,
        };
        loads.sort_by(|a, b| at(a).total_cmp(&at(b)));
        let label = match is_open {
            true => "requests per second",
            false => "requests at once",
        };
        let latency = Chart::new("Latency against load", label, "milliseconds", Scale::Log)
            .note("Solid: the median. Dashed: 99 % are no longer.");
        let names = ["to the first token", "between tokens", "end to end"];
        let latency = names
            .into_iter()
            .enumerate()
            .fold(latency, |chart, (color, name)| {
                let times = |load: &LoadResult| {
                    let mut times = load.latencies();
                    Some(times.find(|(of, _)| *of == name)?.1)
                };
                let line = |of: fn(&super::Quantiles) -> f64| {
                    let points = loads
                        .iter()
                        .filter_map(|load| Some((at(load), of(&times(load)?) * 1e3)));
                    points.collect::<Vec<_>>()
                };
                let median = Series::new(name, line(|times| times.p50)).color(color);
                let late = Series::new(format!("{name}, p99"), line(|times| times.p99));
                chart.series(median).series(late.color(color).dashed())
            });
        let points = loads.iter().map(|load| (at(load), load.tokens_per_second));
        let throughput = Chart::new("Throughput against load", label, "tokens/s", Scale::Linear)
            .series(Series::new("generated tokens", points));
        page.chart(latency).chart(throughput)
    }

    fn experts_chart(&self) -> Chart {
        let experts = self
            .servers()
            .filter_map(|(_, server)| Some((server.tokens_per_step, server.experts?)));
        let mut points: Vec<_> = experts.collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let visited = points.iter().map(|(tokens, of)| (*tokens, of.distinct));
        let even = points
            .iter()
            .map(|(tokens, of)| (*tokens, of.distinct_if_even));
        Chart::new(
            "Experts that a step visits",
            "tokens a step",
            "experts of a layer",
            Scale::Linear,
        )
        .series(Series::new("measured", visited))
        .series(Series::new("if tokens chose evenly", even).dashed())
        .note("The planner computes with even choices. Fewer visited experts are fewer bytes to read, and more tokens for each.")
    }
}

/// The end of a load's last reply.
fn end(load: &LoadResult) -> f64 {
    let ends = load.records.iter().map(|record| record.ended);
    ends.fold(f64::EPSILON, f64::max)
}

fn tokens_over_time(load: &LoadResult) -> Chart {
    let width = end(load) / POINTS as f64;
    let mut tokens = [0; POINTS];
    for &(at, count) in load.records.iter().flat_map(|record| &record.arrivals) {
        tokens[((at / width) as usize).min(POINTS - 1)] += count;
    }
    let points = tokens.iter().enumerate();
    let points =
        points.map(|(place, &tokens)| ((place as f64 + 0.5) * width, tokens as f64 / width));
    Chart::new(
        format!("{}: generated tokens", load.load),
        "seconds",
        "tokens/s",
        Scale::Linear,
    )
    .series(Series::new("tokens/s", points))
}

fn requests_over_time(load: &LoadResult) -> Chart {
    let width = end(load) / POINTS as f64;
    let count = |is_counted: &dyn Fn(&super::Record, f64) -> bool| {
        let points = (0..=POINTS).map(|place| {
            let at = place as f64 * width;
            let counted = load.records.iter().filter(|record| is_counted(record, at));
            (at, counted.count() as f64)
        });
        points.collect::<Vec<_>>()
    };
    let first =
        |record: &super::Record| record.arrivals.first().map_or(record.ended, |(at, _)| *at);
    let waiting = count(&|record, at| record.sent <= at && at < first(record));
    let writing = count(&|record, at| first(record) <= at && at < record.ended);
    Chart::new(
        format!("{}: requests under way", load.load),
        "seconds",
        "requests",
        Scale::Linear,
    )
    .series(Series::new("before their first token", waiting))
    .series(Series::new("after it", writing))
}
