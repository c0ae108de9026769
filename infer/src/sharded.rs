//! How evenly a checkpoint is divided among ranks, as a table, and what is wrong with it, as a list.

use firebox_checkpoint::sharded::{Fault, RankSummary, Summary};
use firebox_console::numbers::{bytes, percent_of};
use firebox_console::report::Table;

/// Faults that are listed.
const LISTED: usize = 50;

/// The ranks of each stage, and how alike all ranks are.
pub fn table(summary: &Summary) -> Table {
    let table = Table::new("")
        .texts(["stage", "ranks", "layers"])
        .numbers(["bytes a rank", "copies among them"]);
    let stages = summary
        .ranks
        .chunk_by(|one, other| one.layers == other.layers);
    let table = stages.enumerate().fold(table, |table, (stage, ranks)| {
        let (first, last) = (ranks[0].rank, ranks[ranks.len() - 1].rank);
        let [start, end] = ranks[0].layers;
        let of = |of: fn(&RankSummary) -> u64| {
            let values = || ranks.iter().map(of);
            span(values().min().unwrap_or(0), values().max().unwrap_or(0))
        };
        table.row([
            stage.to_string().into(),
            numbers(first, last).into(),
            numbers(start, end - 1).into(),
            of(|rank| rank.bytes).into(),
            of(|rank| rank.copied_bytes).into(),
        ])
    });
    table.note(format!(
        "{}: {} in all, {} of it copies; mean / max of the ranks' bytes {:.3}",
        summary.layout,
        bytes(summary.bytes.into()),
        percent_of(summary.copied_bytes.into(), summary.bytes.into()),
        summary.balance
    ))
}

/// The faults, a line each.
pub fn fault_list(faults: &[Fault]) -> String {
    let listed = faults.iter().take(LISTED);
    let mut list: String = listed.map(|fault| format!("{fault}\n")).collect();
    if faults.len() > LISTED {
        list += &format!("and {} more\n", faults.len() - LISTED);
    }
    list
}

fn numbers(first: usize, last: usize) -> String {
    match last - first {
        0 => first.to_string(),
        _ => format!("{first}–{last}"),
    }
}

fn span(least: u64, most: u64) -> String {
    let (least, most) = (bytes(least.into()), bytes(most.into()));
    match least == most {
        true => least,
        false => format!("{least} – {most}"),
    }
}

#[cfg(test)]
mod tests {
    use firebox_model::parallel::RankLayout;

    use super::*;

    #[test]
    fn a_row_for_each_stage() {
        let rank = |rank, layers, bytes| RankSummary {
            rank,
            layers,
            bytes,
            copied_bytes: 0,
        };
        let summary = Summary {
            layout: RankLayout {
                pipeline: 2,
                tensor: 2,
                expert: 1,
            },
            ranks: vec![
                rank(0, [0, 3], 5_000),
                rank(1, [0, 3], 4_000),
                rank(2, [3, 4], 4_000),
                rank(3, [3, 4], 4_000),
            ],
            bytes: 17_000,
            copied_bytes: 170,
            balance: 0.85,
        };
        let table = table(&summary).to_string();
        let lines: Vec<&str> = table.lines().map(str::trim_end).collect();
        assert_eq!(
            lines,
            [
                "stage  ranks  layers         bytes a rank  copies among them",
                "0      0–1    0–2     3.91 KiB – 4.88 KiB                0 B",
                "1      2–3    3                  3.91 KiB                0 B",
                "2 pipeline stages × 2 tensor ranks: 16.6 KiB in all, 1.0 % of it copies; mean / max of the ranks' bytes 0.850",
            ]
        );
    }

    #[test]
    fn a_long_list_ends_with_the_number_of_the_others() {
        let fault = |rank| Fault {
            rank: Some(rank),
            tensor: Some("lm_head.weight".to_owned()),
            fault: "is not as it was written".to_owned(),
        };
        let faults: Vec<Fault> = (0..53).map(fault).collect();
        let list = fault_list(&faults);
        assert_eq!(list.lines().count(), 51);
        assert!(list.starts_with("rank-000: lm_head.weight is not as it was written\n"));
        assert!(list.ends_with("and 3 more\n"));
        assert_eq!(fault_list(&[]), "");
    }
}
