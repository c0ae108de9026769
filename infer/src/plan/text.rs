//! A plan as tables.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use firebox_console::numbers::{brief, bytes, counted, flop, grouped, scaled};
use firebox_console::report::Table;
use firebox_model::accounting::{Accounting, SLIP, is_described};
use firebox_model::config::ModelConfig;

use super::{Hardware, Plan, Speculation, Workload};

/// Everything that is known of a plan: text through `Display`, JSON through serde.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The model's parameters and operations.
    pub model: Accounting,
    /// The hardware.
    pub hardware: Hardware,
    /// What is asked of the model.
    pub workload: Workload,
    /// The plan.
    pub plan: Plan,
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

/// The cost at a number of texts at once.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByBatch {
    /// Texts at once.
    pub batch: usize,
    /// Share of the experts that a step visits; `None` for a dense model.
    pub expert_utilization: Option<f64>,
    /// Seconds from a token to the next one.
    pub token_seconds: f64,
    /// Generated tokens per second of all texts.
    pub tokens_per_second: f64,
    /// Dollars for a million generated tokens.
    pub dollars_per_million: f64,
    /// Whether it fits into memory.
    pub fits: bool,
    /// The other model on as few ranks as hold it and these texts, where there is one and it fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<Plan>,
}

impl ByBatch {
    /// The part of a plan that depends on the number of texts, beside that of another model.
    pub fn new(batch: usize, plan: Plan, beside: Option<Plan>) -> Self {
        Self {
            batch,
            expert_utilization: plan.expert_utilization,
            token_seconds: plan.token_seconds,
            tokens_per_second: plan.tokens_per_second,
            dollars_per_million: plan.dollars_per_million,
            fits: plan.fits,
            beside,
        }
    }
}

impl Report {
    /// What does not depend on the plan.
    pub fn new(config: &ModelConfig, hardware: Hardware, workload: Workload, plan: Plan) -> Self {
        Self {
            model: Accounting::of(config),
            hardware,
            workload,
            plan,
            by_batch: Vec::new(),
            three_times_at: None,
            speculation: Vec::new(),
        }
    }
}

impl Display for Report {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let mut tables = vec![self.summary(), self.bytes(), self.speed(), self.messages()];
        if !self.by_batch.is_empty() {
            tables.push(self.batches());
        }
        if !self.speculation.is_empty() {
            tables.push(self.drafts());
        }
        let tables: Vec<String> = tables.iter().map(Table::to_string).collect();
        formatter.write_str(&tables.join("\n"))
    }
}

fn rows<const N: usize>(title: &str, rows: [(&str, String, String); N]) -> Table {
    let table = Table::new(title).texts([""]).numbers([""]).texts([""]);
    rows.into_iter()
        .fold(table, |table, (label, number, remark)| {
            table.row([label.into(), number.into(), remark.into()])
        })
}

/// A share of one, as a percentage.
fn percentage(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn milliseconds(seconds: f64) -> String {
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
            width,
        } = self.workload;
        let every = match model.operations.forward_every_expert == model.operations.forward {
            true => String::new(),
            false => format!(
                "{} with all experts",
                flop(model.operations.forward_every_expert)
            ),
        };
        let table = rows(
            "plan",
            [
                (
                    "parameters",
                    scaled(model.total as f64),
                    format!(
                        "{} active, {} each",
                        scaled(model.active as f64),
                        counted(width as u128, "byte")
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
                        "prompts of {}, {} generated",
                        counted(prompt as u128, "token"),
                        grouped(output as u128)
                    ),
                ),
            ],
        );
        match is_described(model) {
            true => table.note(SLIP),
            false => table,
        }
    }

    fn bytes(&self) -> Table {
        let plan = &self.plan;
        let amount = |bytes_of: f64| bytes(bytes_of as u128);
        let all = plan.weight_bytes + plan.cache_bytes + plan.activation_bytes;
        let fits = match plan.fits {
            true => "fits".to_owned(),
            false => format!("does not fit into {}", amount(self.hardware.memory_bytes)),
        };
        let balance = format!("mean / max of the stages {:.4}", plan.stage_balance);
        rows(
            "bytes of the fullest rank",
            [
                ("weights", amount(plan.weight_bytes), balance),
                ("caches", amount(plan.cache_bytes), String::new()),
                (
                    "activations",
                    amount(plan.activation_bytes),
                    "while a prompt is read".to_owned(),
                ),
                ("all", amount(all), fits),
                (
                    "largest batch",
                    grouped(plan.largest_batch as u128),
                    "texts at once that fit".to_owned(),
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
        rows(
            "speed and cost",
            [
                (
                    "first token",
                    milliseconds(plan.first_token_seconds),
                    "of one prompt, alone".to_owned(),
                ),
                (
                    "a token of a text",
                    milliseconds(plan.token_seconds),
                    utilized.unwrap_or_default(),
                ),
                (
                    "tokens/s",
                    brief(plan.tokens_per_second),
                    "of all texts".to_owned(),
                ),
                (
                    "a million tokens",
                    dollars(plan.dollars_per_million),
                    format!(
                        "with their prompts, at {} per rank and hour",
                        dollars(price)
                    ),
                ),
            ],
        )
    }

    fn messages(&self) -> Table {
        let traffic = &self.plan.traffic;
        let table = Table::new("messages of a token, of one rank of each stage")
            .texts([""])
            .numbers(["", "bytes of one"]);
        let kinds = [
            ("sums of layers", traffic.layer_sums),
            ("sums of embeddings", traffic.embedding_sums),
            ("sums of norms", traffic.norm_sums),
            ("hops between stages", traffic.hops),
        ];
        let kinds = kinds.into_iter().filter(|(_, messages)| messages.count > 0);
        kinds.fold(table, |table, (name, messages)| {
            table.row([
                name.into(),
                grouped(messages.count).into(),
                grouped(messages.bytes / messages.count).into(),
            ])
        })
    }

    fn batches(&self) -> Table {
        let beside = self.by_batch.iter().any(|row| row.beside.is_some());
        let moe = self.plan.expert_utilization.is_some();
        let mut headings = vec!["texts at once"];
        if moe {
            headings.push("experts visited");
        }
        headings.extend(["ms a token", "tokens/s", "$ a million"]);
        if beside {
            headings.extend(["ranks beside", "tokens/s", "$ a million", "× its cost"]);
        }
        let table = Table::new("by batch").numbers(headings);
        let table = self.by_batch.iter().fold(table, |table, row| {
            let mark = if row.fits { "" } else { "*" };
            let mut cells = vec![format!("{}{mark}", grouped(row.batch as u128)).into()];
            if moe {
                cells.push(percentage(row.expert_utilization.unwrap_or(0.0)).into());
            }
            cells.extend([
                brief(row.token_seconds * 1e3).into(),
                brief(row.tokens_per_second).into(),
                brief(row.dollars_per_million).into(),
            ]);
            if let Some(other) = &row.beside {
                let ratio = row.dollars_per_million / other.dollars_per_million;
                cells.extend([
                    grouped(other.ranks as u128).into(),
                    brief(other.tokens_per_second).into(),
                    brief(other.dollars_per_million).into(),
                    format!("{ratio:.2}").into(),
                ]);
            }
            table.row(cells)
        });
        let mut notes = vec!["* does not fit into memory".to_owned()];
        if beside {
            notes.push("the model beside is on as few stages as hold it and the texts".to_owned());
        }
        if let Some(batch) = self.three_times_at {
            let batch = grouped(batch as u128);
            notes.push(format!(
                "this one costs 3 times as much with {batch} texts at once"
            ));
        }
        table.note(notes.join("; "))
    }

    fn drafts(&self) -> Table {
        let best = self
            .speculation
            .iter()
            .max_by(|a, b| a.speedup.total_cmp(&b.speedup))
            .map_or(0, |best| best.draft_tokens);
        let moe = self.plan.expert_utilization.is_some();
        let mut headings = vec!["draft tokens", "tokens a step"];
        if moe {
            headings.push("experts visited");
        }
        headings.extend(["tokens/s", "speed-up"]);
        let table = Table::new("speculative decoding").numbers(headings);
        let table = self.speculation.iter().fold(table, |table, row| {
            let mut cells = vec![
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
        table.note(match best {
            0 => "a draft does not pay off here".to_owned(),
            _ => format!("drafts of {} pay off most", counted(best as u128, "token")),
        })
    }
}
