//! A plan as tables.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use serde::Serialize;

use firebox_console::numbers::{brief, bytes, counted, flop, grouped, percentage, scaled};
use firebox_console::report::{Cell, Table};
use firebox_model::accounting::Accounting;

use super::{ByBatch, Hardware, Plan, Speculation, Workload};

/// Everything that is known of a plan: text through `Display`, JSON through serde.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The model's parameters and operations.
    pub model: Accounting,
    /// A remark on the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The hardware.
    pub hardware: Hardware,
    /// The workload.
    pub workload: Workload,
    /// The plan.
    pub plan: Plan,
    /// The model beside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<PathBuf>,
    /// Costs of numbers of texts at once, up to the one that is asked for and beyond.
    pub by_batch: Vec<ByBatch>,
    /// The largest number of texts at once at which the model costs three times as much as the one beside it, where that is
    /// between two of those numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub three_times_at: Option<usize>,
    /// Drafts of every length.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub speculation: Vec<Speculation>,
}

impl Display for Report {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let tables = [
            self.summary(),
            self.memory(),
            self.speed(),
            self.communication(),
            self.batches(),
            self.drafts(),
        ];
        let tables = tables.iter().filter(|table| !table.is_empty());
        let tables: Vec<String> = tables.map(Table::to_string).collect();
        formatter.write_str(&tables.join("\n"))
    }
}

/// Milliseconds with three digits.
pub(super) fn milliseconds(seconds: f64) -> String {
    format!("{} ms", brief(seconds * 1e3))
}

fn dollars(amount: f64) -> String {
    format!("${}", brief(amount))
}

impl Report {
    fn summary(&self) -> Table {
        let (model, plan) = (&self.model, &self.plan);
        let Workload {
            batch,
            prompt,
            output,
            pictures,
            widths,
        } = self.workload;
        let seen = match pictures {
            0 => String::new(),
            _ => format!(" and {}", counted(pictures as u128, "picture")),
        };
        let every = match model.operations.forward_every_expert == model.operations.forward {
            true => String::new(),
            false => format!(
                "{} with all experts",
                flop(model.operations.forward_every_expert)
            ),
        };
        let table = Table::figures(
            "plan",
            [
                (
                    "parameters",
                    scaled(model.total as f64),
                    format!(
                        "{} active, {} each",
                        scaled(model.active as f64),
                        match widths.weight.fract() {
                            0.0 => counted(widths.weight as u128, "byte"),
                            // In 8 bits, with a part of a scale.
                            _ => format!("{} bytes", brief(widths.weight)),
                        }
                    ),
                ),
                ("forward per token", flop(model.operations.forward), every),
                (
                    "ranks",
                    grouped(plan.ranks as u128),
                    format!("{}, on {}", plan.layout, self.hardware.name),
                ),
                (
                    "texts at once",
                    grouped(batch as u128),
                    format!(
                        "prompts of {}{seen}, {} generated",
                        counted(prompt as u128, "token"),
                        grouped(output as u128)
                    ),
                ),
            ],
        );
        let table = match &model.pictures {
            Some(of) => table.row([
                "a picture".into(),
                flop(of.encoder + of.keys).into(),
                format!("and {} for each token that sees it", flop(of.token)).into(),
            ]),
            None => table,
        };
        match &self.note {
            Some(note) => table.note(note),
            None => table,
        }
    }

    fn memory(&self) -> Table {
        let plan = &self.plan;
        let amount = |bytes_of: f64| bytes(bytes_of as u128);
        let fits = match plan.fits {
            true => "fits".to_owned(),
            false => format!("does not fit into {}", amount(plan.memory_bytes)),
        };
        let of_pictures = match plan.picture_bytes > 0.0 {
            true => format!("{} of them of pictures", amount(plan.picture_bytes)),
            false => String::new(),
        };
        let balance = format!("mean / max of the stages {:.4}", plan.stage_balance);
        Table::figures(
            "memory of the fullest rank",
            [
                ("weights", amount(plan.weight_bytes), balance),
                ("KV cache", amount(plan.cache_bytes), of_pictures),
                (
                    "activations",
                    amount(plan.activation_bytes),
                    "while a prompt is read".to_owned(),
                ),
                ("total", amount(plan.total_bytes()), fits),
                (
                    "largest batch",
                    grouped(plan.largest_batch as u128),
                    "texts at once that fit on every rank".to_owned(),
                ),
            ],
        )
    }

    fn speed(&self) -> Table {
        let plan = &self.plan;
        let price = self.hardware.price.dollars_per_hour;
        let utilized = plan.expert_utilization.map(|share| {
            format!(
                "{} of the experts visited by a step's tokens",
                percentage(share)
            )
        });
        Table::figures(
            "speed and cost",
            [
                (
                    "time to first token",
                    milliseconds(plan.first_token_seconds),
                    "of one prompt, alone".to_owned(),
                ),
                (
                    "time per output token",
                    milliseconds(plan.token_seconds),
                    utilized.unwrap_or_default(),
                ),
                (
                    "tokens/s",
                    brief(plan.tokens_per_second),
                    "of all texts".to_owned(),
                ),
                (
                    "cost of 1 M tokens",
                    dollars(plan.dollars_per_million),
                    format!(
                        "with their prompts, at {} per accelerator and hour",
                        dollars(price)
                    ),
                ),
            ],
        )
    }

    fn communication(&self) -> Table {
        let traffic = &self.plan.traffic;
        let width = self.workload.widths.message as u128;
        let table = Table::new("communication per token (one rank per stage)")
            .texts([""])
            .numbers(["", "bytes each"])
            .note(format!(
                "activations are sent as {} a value",
                counted(width, "byte")
            ));
        let kinds = [
            ("all-reduces of layers", traffic.layer_sums),
            ("all-reduces of embeddings", traffic.embedding_sums),
            ("all-reduces of norms", traffic.norm_sums),
            ("sends between stages", traffic.hops),
        ];
        let kinds = kinds.into_iter().filter(|(_, messages)| messages.count > 0);
        kinds.fold(table, |table, (name, messages)| {
            table.row([
                name.into(),
                grouped(messages.count).into(),
                grouped(messages.bytes_of_one()).into(),
            ])
        })
    }

    fn batches(&self) -> Table {
        let moe = self.plan.expert_utilization.is_some();
        let mut headings = vec!["texts at once".to_owned()];
        if moe {
            headings.push("experts visited".to_owned());
        }
        headings.extend(["ms per token", "tokens/s", "$ per 1 M"].map(str::to_owned));
        if let Some(beside) = &self.beside {
            headings.push(format!("ranks of {}", beside.display()));
            headings.extend(["tokens/s", "$ per 1 M", "cost ratio"].map(str::to_owned));
        }
        let table = Table::new("by batch").numbers(headings);
        let table = self.by_batch.iter().fold(table, |table, row| {
            let mark = if row.fits { "" } else { "*" };
            let mut cells: Vec<Cell> = vec![format!("{}{mark}", grouped(row.batch as u128)).into()];
            if moe {
                cells.push(percentage(row.expert_utilization.unwrap_or(0.0)).into());
            }
            cells.extend([
                brief(row.token_seconds * 1e3).into(),
                brief(row.tokens_per_second).into(),
                brief(row.dollars_per_million).into(),
            ]);
            if self.beside.is_some() {
                cells.extend(beside_cells(row));
            }
            table.row(cells)
        });
        let notes = self.batch_notes();
        match notes.is_empty() {
            true => table,
            false => table.note(notes.join("; ")),
        }
    }

    fn batch_notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.by_batch.iter().any(|row| !row.fits) {
            notes.push("* does not fit into memory".to_owned());
        }
        if let Some(beside) = &self.beside {
            let tensor = self.plan.layout.tensor;
            notes.push(format!(
                "{} has {} and the fewest stages that fit{}",
                beside.display(),
                counted(tensor as u128, "tensor rank"),
                match self.by_batch.iter().any(|row| row.beside.is_none()) {
                    true => "; – where none fit",
                    false => "",
                }
            ));
        }
        if let Some(batch) = self.three_times_at {
            let batch = grouped(batch as u128);
            notes.push(format!("cost ratio 3 at a batch of {batch}"));
        }
        notes
    }

    fn drafts(&self) -> Table {
        let moe = self.plan.expert_utilization.is_some();
        let mut headings = vec!["draft tokens", "tokens per step"];
        if moe {
            headings.push("experts visited");
        }
        headings.extend(["tokens/s", "speed-up"]);
        let table = Table::new("speculative decoding").numbers(headings);
        let table = self.speculation.iter().fold(table, |table, row| {
            let mut cells: Vec<Cell> = vec![
                row.draft_tokens.to_string().into(),
                format!("{:.2}", row.tokens_per_step).into(),
            ];
            if moe {
                cells.push(percentage(row.expert_utilization.unwrap_or(0.0)).into());
            }
            cells.extend([
                brief(row.tokens_per_second).into(),
                format!("{:.2}", row.speedup).into(),
            ]);
            table.row(cells)
        });
        let speculation = self.speculation.iter();
        let best = speculation.max_by(|one, other| one.speedup.total_cmp(&other.speedup));
        match best {
            Some(Speculation {
                draft_tokens: 0, ..
            }) => table.note("no draft pays off here"),
            Some(best) => {
                let tokens = counted(best.draft_tokens as u128, "token");
                table.note(format!("drafts of {tokens} pay off most"))
            }
            None => table,
        }
    }
}

/// The other model's part of a row.
fn beside_cells(row: &ByBatch) -> [Cell; 4] {
    let (Some(other), Some(ratio)) = (&row.beside, row.cost_ratio()) else {
        return ["–"; 4].map(Cell::from);
    };
    [
        grouped(other.ranks as u128).into(),
        brief(other.tokens_per_second).into(),
        brief(other.dollars_per_million).into(),
        format!("{ratio:.2}").into(),
    ]
}
