//! Text that a run repeats so often that it teaches little.

use super::folder::Manifest;
use super::record::Records;
use super::survey::survey_of_records;
use super::{SourceSummary, folder_of, root, summaries};
use crate::config::{RunConfig, Share};

/// How often text may be seen until another time is worth less than new text, and until it is worth almost nothing
/// (arXiv 2305.16264).
const FRESH: f64 = 4.0;
const STALE: f64 = 16.0;

/// Warns of sources that a run will repeat often. Reads no source: what is not prepared yet is judged by its `epochs`.
pub fn warn_of_planned_repetition(config: &RunConfig) {
    if let Some(sources) = prepared_before(config) {
        return warn(config, &sources);
    }
    for source in &config.data.source {
        if let Share::Epochs(epochs) = source.share {
            warn_of(&source.text.name, f64::from(epochs), "up to");
        }
    }
}

/// Warns of sources that a run repeats often.
pub(super) fn warn(config: &RunConfig, sources: &[SourceSummary]) {
    for source in sources {
        warn_of(&source.name, times_seen(config, source), "about");
    }
}

/// How often a run sees the text of a source.
fn times_seen(config: &RunConfig, source: &SourceSummary) -> f64 {
    let times = config.sequences() as f64 * source.part / source.sequences;
    match source.share {
        // A run that needs more than that is refused.
        Share::Epochs(epochs) => times.min(f64::from(epochs)),
        Share::Weight(_) => times,
    }
}

fn warn_of(source: &str, times: f64, about: &str) {
    if times > FRESH {
        tracing::warn!(
            "source {source:?}: the run sees its text {about} {times:.0} times; text that was seen {FRESH} times teaches \
             less than new text, and after {STALE} times almost nothing (arXiv 2305.16264): add text, or lower its \
             weight or epochs"
        );
    }
}

/// What the sources give, if they are prepared and unchanged; opens no file of a source.
fn prepared_before(config: &RunConfig) -> Option<Vec<SourceSummary>> {
    let records = Records::of(&root(config));
    let survey = survey_of_records(&config.data, &config.tokenizer, &records)?;
    let folder = folder_of(config, &survey.key)?;
    let manifest = Manifest::read(&folder, &survey.key, survey.sources.len()).ok()?;
    Some(summaries(config, &manifest.sources))
}

#[cfg(test)]
mod tests {
    use super::super::TextSummary;
    use super::*;
    use crate::testing::SmallRun;

    #[test]
    fn text_is_seen_in_proportion_to_the_run() {
        // Four steps of 24 tokens.
        let config = SmallRun::new().config(&[]);
        let seen = |share, part, tokens| {
            let source = SourceSummary {
                name: "notes".to_owned(),
                text: TextSummary {
                    documents: 1,
                    bytes: tokens,
                    tokens,
                },
                share,
                sequences: tokens as f64 / 8.0,
                part,
            };
            times_seen(&config, &source)
        };
        assert_eq!(seen(Share::Weight(1.0), 0.25, 12), 2.0);
        assert_eq!(seen(Share::Weight(1.0), 1.0, 12), 8.0);
        assert_eq!(seen(Share::Epochs(10), 0.5, 12), 4.0);
        assert_eq!(seen(Share::Epochs(3), 0.5, 12), 3.0);
    }

    #[test]
    fn prepared_text_is_known_without_reading_it() {
        let run = SmallRun::new();
        let config = run.config(&[]);
        assert_eq!(prepared_before(&config), None);
        let prepared = super::super::prepare(&config, false).unwrap();
        // Files that were changed just now are not trusted.
        assert_eq!(prepared_before(&config), None);
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        for number in 0..8 {
            let file = std::fs::File::options()
                .write(true)
                .open(run.path(&format!("{number}.txt")));
            file.unwrap().set_modified(old).unwrap();
        }
        super::super::prepare(&config, false).unwrap();
        assert_eq!(prepared_before(&config), Some(prepared.sources));
        std::fs::remove_dir_all(prepared.folder).unwrap();
        assert_eq!(prepared_before(&config), None);
    }
}
