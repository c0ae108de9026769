//! `--timeline FILE`: when each pipeline stage computes, in the trace event format of Chrome, which Perfetto shows too.

use std::path::Path;

use firebox_console::durable;
use firebox_model::timeline::{Activity, Span, busy_shares};
use serde_json::{Value, json};

use crate::InferError;

/// Writes what was recorded, and logs the share of the time in which each stage computed.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write(path: &Path, spans: &[Span]) -> Result<(), InferError> {
    let trace = json!({ "displayTimeUnit": "ms", "traceEvents": events(spans) });
    durable::write(path, trace.to_string())?;
    let shares = busy_shares(spans);
    let mean = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let shares: Vec<String> = shares.into_iter().map(percent).collect();
    tracing::info!(
        "{} shows when each stage computes (open it in https://ui.perfetto.dev or chrome://tracing); busy shares of the \
         stages: {}; on average {}",
        path.display(),
        shares.join(", "),
        percent(mean),
    );
    Ok(())
}

/// A row for each stage, from the first span on.
fn events(spans: &[Span]) -> Vec<Value> {
    let stages = spans.iter().map(|span| span.stage + 1).max().unwrap_or(0);
    let first = spans.iter().map(|span| span.start).min().unwrap_or(0);
    let rows = (0..stages).map(|stage| {
        json!({
            "ph": "M", "pid": 0, "tid": stage, "name": "thread_name",
            "args": { "name": format!("stage {stage}") },
        })
    });
    let spans = spans.iter().map(|span| {
        let name = match span.activity {
            Activity::Wait => "wait",
            Activity::Compute => "compute",
            Activity::Send => "send",
        };
        json!({
            "ph": "X", "pid": 0, "tid": span.stage, "name": name, "cat": "step",
            "ts": span.start - first, "dur": span.duration,
            "args": { "step": span.step, "tokens": span.tokens },
        })
    });
    rows.chain(spans).collect()
}

#[cfg(test)]
mod tests {
    use firebox_console::advice::Advise as _;

    use super::*;

    #[test]
    fn each_stage_has_a_row_and_each_span_an_event() {
        let span = |stage, start| Span {
            stage,
            activity: Activity::Compute,
            step: 4,
            tokens: 7,
            start,
            duration: 30,
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        write(&path, &[span(0, 1_000), span(1, 1_025)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let trace: Value = serde_json::from_str(&text).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let rows = events.iter().filter(|event| event["ph"] == "M");
        let names: Vec<&str> = rows
            .map(|row| row["args"]["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["stage 0", "stage 1"]);
        let second = &events[3];
        assert_eq!(
            (&second["ts"], &second["dur"], &second["tid"]),
            (&json!(25), &json!(30), &json!(1))
        );
        assert_eq!(second["args"], json!({ "step": 4, "tokens": 7 }));
        let error = write(&folder.path().join("no/such/trace.json"), &[]).unwrap_err();
        assert_eq!(error.exit_code(), 1);
    }
}
