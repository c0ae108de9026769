//! A study's result as text.

use std::fmt::{self, Display, Formatter};

use firebox_console::numbers::{counted, grouped, scaled};
use firebox_console::report::{Cell, Table, Verdict};

use super::result::Spread;
use super::{Compared, Equal, StudyResult, Unit};

impl Display for StudyResult {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.table())?;
        for (_, sentence) in self.sentences() {
            writeln!(formatter, "{sentence}")?;
        }
        Ok(())
    }
}

impl Display for Unit {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NatsPerToken => "nats per token",
            Self::BitsPerByte => "bits per byte",
        })
    }
}

impl Display for Equal {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seconds(seconds) => write!(formatter, "{seconds} seconds of training"),
            Self::Tokens(tokens) => write!(formatter, "{} tokens", grouped(*tokens)),
            Self::Flops(flops) => write!(formatter, "{flops:.1e} floating-point operations"),
        }
    }
}

impl StudyResult {
    /// The variants side by side.
    pub(super) fn table(&self) -> Table {
        let first = &self.compared[0].name;
        let table = Table::new(format!(
            "equal {}, {}",
            self.study.equal,
            counted(self.study.seeds.len() as u128, "seed")
        ))
        .texts(["variant"])
        .numbers([
            "parameters",
            "active",
            "steps",
            "tokens",
            "seconds",
            "held-out loss",
            "bits/byte",
        ])
        .numbers([format!("less {first}"), "speed-up".to_owned()]);
        let table = self.compared.iter().fold(table, |table, compared| {
            let difference = match &compared.difference {
                None => Cell::from(""),
                Some(difference) => {
                    let text = with_sign(difference);
                    match difference.is_sure() {
                        true if difference.mean < 0.0 => Cell::judged(text, Verdict::Good),
                        true => Cell::judged(text, Verdict::Bad),
                        false => Cell::judged(text, Verdict::Notable),
                    }
                }
            };
            let speed_up = compared.speed_up.map(|ratio| format!("{ratio:.2}"));
            table.row([
                compared.name.as_str().into(),
                scaled(compared.parameters as f64).into(),
                scaled(compared.active_parameters as f64).into(),
                grouped(compared.steps).into(),
                scaled(compared.tokens as f64).into(),
                format!("{:.1}", compared.seconds).into(),
                loss_of(compared),
                compared
                    .bits_per_byte
                    .as_ref()
                    .map(with_deviation)
                    .unwrap_or_default()
                    .into(),
                difference,
                speed_up.unwrap_or_default().into(),
            ])
        });
        let unit = self.unit;
        table.note(format!(
            "Losses are nats per token at the end of the runs, with ± the standard deviation over seeds. Differences are {unit} between \
             runs of the same seed, with ± half the interval of 95 % confidence. The speed-up is how many times sooner the \
             better one reaches the other's last loss. Its learning rate had not been lowered for an end at that time, so the \
             true one is at least that."
        ))
    }

    /// What the study says.
    pub(super) fn sentences(&self) -> Vec<(Verdict, String)> {
        let others = self.compared[1..].iter();
        let mut sentences: Vec<_> = others.map(|compared| self.sentence(compared)).collect();
        let diverged = self
            .compared
            .iter()
            .filter(|compared| !compared.diverged.is_empty());
        sentences.extend(diverged.map(|Compared { name, diverged, .. }| {
            let seeds: Vec<String> = diverged.iter().map(u64::to_string).collect();
            let text = match &seeds[..] {
                [seed] => format!("{name} diverged with seed {seed}"),
                _ => format!("{name} diverged with seeds {}", seeds.join(", ")),
            };
            (Verdict::Bad, text)
        }));
        if !self.is_same_text {
            let text = "the runs have different held-out texts, so that their losses say little of each other";
            sentences.push((Verdict::Bad, text.to_owned()));
        }
        sentences
    }

    /// What the study says of a variant.
    fn sentence(&self, compared: &Compared) -> (Verdict, String) {
        let (name, first) = (&compared.name, &self.compared[0].name);
        let Some(difference) = &compared.difference else {
            let text = format!("{name} and {first} have no seed with which both finished");
            return (Verdict::Bad, text);
        };
        if difference.values.iter().all(|&value| value == 0.0) {
            let text = format!("{name} ends with the very losses of {first}");
            return (Verdict::Notable, text);
        }
        let amount = format!("{:.4} {}", difference.mean.abs(), self.unit);
        let which = if difference.mean < 0.0 {
            "better"
        } else {
            "worse"
        };
        match (difference.is_sure(), difference.mean < 0.0) {
            (true, true) => (
                Verdict::Good,
                format!("{name} is better than {first} by {amount}"),
            ),
            (true, false) => (
                Verdict::Bad,
                format!("{name} is worse than {first} by {amount}"),
            ),
            (false, _) => {
                let seeds = counted(difference.values.len() as u128, "seed");
                let text = format!(
                    "{name} is {which} than {first} by {amount}, which {seeds} cannot tell from chance"
                );
                (Verdict::Notable, text)
            }
        }
    }
}

fn loss_of(compared: &Compared) -> Cell {
    let diverged = compared.diverged.len();
    match &compared.loss {
        None => Cell::judged("diverged", Verdict::Bad),
        Some(loss) if diverged > 0 => {
            let text = format!("{}, {diverged} diverged", with_deviation(loss));
            Cell::judged(text, Verdict::Bad)
        }
        Some(loss) => with_deviation(loss).into(),
    }
}

fn with_deviation(spread: &Spread) -> String {
    match spread.deviation {
        Some(deviation) => format!("{:.4} ± {deviation:.4}", spread.mean),
        None => format!("{:.4}", spread.mean),
    }
}

fn with_sign(difference: &Spread) -> String {
    match difference.confidence {
        Some(confidence) => format!("{:+.4} ± {confidence:.4}", difference.mean),
        None => format!("{:+.4}", difference.mean),
    }
}
