//! What requests for completions and for chats have in common.

use firebox_model::sampling::Sampling;

use super::body::Body;
use super::field::{Field, Kind, Numbers};
use crate::error::ApiError;

/// The most choices of a prompt.
const CHOICES: usize = 128;
/// The most stop strings.
const STOPS: usize = 16;
/// The most log-probabilities of a position.
pub(super) const LIKELIEST: usize = 20;

/// Fields that [`Generation::read`] reads, and those that are refused by name.
pub(super) const FIELDS: &[&str] = &[
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stream",
    "stream_options",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "suffix",
    "best_of",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "response_format",
    "modalities",
    "audio",
    "prediction",
];

/// How texts are generated, and how they are sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The model that is asked for.
    pub model: Option<String>,
    /// The most tokens to generate, if it is said.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen; the seed is that of the request, if it has one.
    pub sampling: Sampling,
    /// The seed; without one, it is drawn.
    pub seed: Option<u64>,
    /// Choices of each prompt.
    pub n: usize,
    /// Texts that end a text.
    pub stops: Vec<String>,
    /// Tokens that end a text.
    pub stop_ids: Vec<u32>,
    /// Whether the end-of-text token is a token like others.
    pub ignore_eos: bool,
    /// What is added to the logits of tokens; each occurs once.
    pub bias: Vec<(u32, f32)>,
    /// How the reply is streamed, if it is.
    pub stream: Option<StreamOptions>,
    /// Whether special tokens are shown.
    pub special_tokens: bool,
    /// Whether a text ends after its stop string and not before it.
    pub include_stop: bool,
}

/// What a stream has beside texts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// A chunk with the usage at the end.
    pub include_usage: bool,
    /// The usage so far in each chunk.
    pub continuous_usage: bool,
}

const TEMPERATURE: Numbers = Numbers {
    contain: |value| (0.0..=2.0).contains(&value),
    words: "from 0 to 2",
};
const TOP_P: Numbers = Numbers {
    contain: |value| value > 0.0 && value <= 1.0,
    words: "greater than 0 and at most 1",
};
const SHARE: Numbers = Numbers {
    contain: |value| (0.0..=1.0).contains(&value),
    words: "from 0 to 1",
};
const PENALTY: Numbers = Numbers {
    contain: |value| (-2.0..=2.0).contains(&value),
    words: "from -2 to 2",
};
const POSITIVE: Numbers = Numbers {
    contain: |value| value > 0.0,
    words: "greater than 0",
};
const BIAS: Numbers = Numbers {
    contain: |value| (-100.0..=100.0).contains(&value),
    words: "from -100 to 100",
};

impl Generation {
    /// Reads the fields; `max_tokens` is at least `least_tokens`.
    ///
    /// # Errors
    ///
    /// The first field that is wrong.
    pub fn read(body: &Body<'_>, least_tokens: usize) -> Result<Self, ApiError> {
        let n = body.optional("n", |field| field.count(1..=CHOICES))?;
        let n = n.unwrap_or(1);
        refuse_unsupported(body, n)?;
        let boolean = |name| {
            Ok(body
                .optional(name, |field| field.boolean())?
                .unwrap_or(false))
        };
        let seed = body.optional("seed", |field| {
            field.integer(i128::from(i64::MIN)..=i128::from(u64::MAX))
        })?;
        Ok(Self {
            model: body.optional("model", |field| field.text())?,
            max_tokens: body
                .optional("max_tokens", |field| field.count(least_tokens..=usize::MAX))?,
            sampling: sampling(body)?,
            // Negative seeds have the bits of two's complement.
            seed: seed.map(|seed| seed as u64),
            n,
            stops: body.optional("stop", stops)?.unwrap_or_default(),
            stop_ids: body.optional("stop_token_ids", ids)?.unwrap_or_default(),
            ignore_eos: boolean("ignore_eos")?,
            bias: body.optional("logit_bias", bias)?.unwrap_or_default(),
            stream: stream(body, boolean("stream")?)?,
            special_tokens: !body
                .optional("skip_special_tokens", |field| field.boolean())?
                .unwrap_or(true),
            include_stop: boolean("include_stop_str_in_output")?,
        })
    }
}

fn sampling(body: &Body<'_>) -> Result<Sampling, ApiError> {
    let number = |name, numbers, default| {
        let value = body.optional(name, |field| field.number(numbers))?;
        Ok(value.unwrap_or(default))
    };
    let top_k = body.optional("top_k", |field| field.integer(-1..=i128::from(u32::MAX)))?;
    Ok(Sampling {
        repetition_penalty: number("repetition_penalty", POSITIVE, 1.0)?,
        presence_penalty: number("presence_penalty", PENALTY, 0.0)?,
        frequency_penalty: number("frequency_penalty", PENALTY, 0.0)?,
        temperature: number("temperature", TEMPERATURE, 1.0)?,
        // −1 means all, as 0 does.
        top_k: top_k.unwrap_or(0).max(0) as usize,
        top_p: number("top_p", TOP_P, 1.0)?,
        min_p: number("min_p", SHARE, 0.0)?,
        ..Sampling::default()
    })
}

fn stops(field: Field<'_>) -> Result<Vec<String>, ApiError> {
    const ALLOWED: &str = "a text or a list of texts";
    let mut stops = Vec::new();
    let mut add = |stop: Field<'_>| {
        if stops.len() == STOPS {
            return Err(field.refused(format!("has more than {STOPS} texts")));
        }
        stops.push(stop.text()?);
        match stops.last().is_some_and(String::is_empty) {
            true => Err(stop.refused("is empty; it must be a text of at least one character")),
            false => Ok(()),
        }
    };
    match field.kind() {
        Kind::Text => add(field.clone())?,
        _ => field.items(ALLOWED, |index, raw| add(field.item(index, raw)))?,
    }
    Ok(stops)
}

/// Reads a list of token ids.
pub(super) fn ids(field: Field<'_>) -> Result<Vec<u32>, ApiError> {
    let mut ids = Vec::new();
    field.items("a list of token ids", |index, raw| {
        // Long prompts are lists of ids.
        let id = match raw.get().parse() {
            Ok(id) => id,
            Err(_) => field.item(index, raw).integer(0..=i128::from(u32::MAX))? as u32,
        };
        ids.push(id);
        Ok(())
    })?;
    Ok(ids)
}

fn bias(field: Field<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    let mut bias = Vec::new();
    field.members("an object of token ids with numbers", |id, value| {
        let id = id.parse::<u32>();
        let id = id.map_err(|_| value.refused("has no token id for a name"))?;
        bias.push((id, value.number(BIAS)? as f32));
        Ok(())
    })?;
    // Of several values for a token, the last counts.
    bias.reverse();
    bias.sort_by_key(|&(id, _)| id);
    bias.dedup_by_key(|&mut (id, _)| id);
    Ok(bias)
}

fn stream(body: &Body<'_>, is_stream: bool) -> Result<Option<StreamOptions>, ApiError> {
    let Some(field) = body.field("stream_options") else {
        return Ok(is_stream.then(StreamOptions::default));
    };
    if !is_stream {
        return Err(field.refused("is for streams; set stream to true or leave it out"));
    }
    let mut options = StreamOptions::default();
    field.members("an object", |name, value| {
        match name {
            "include_usage" => options.include_usage = value.boolean()?,
            "continuous_usage_stats" => options.continuous_usage = value.boolean()?,
            _ => (),
        }
        Ok(())
    })?;
    Ok(Some(options))
}

/// Refuses what would mislead a client if it were ignored.
fn refuse_unsupported(body: &Body<'_>, n: usize) -> Result<(), ApiError> {
    let is_text = |field: &Field<'_>, text| field.text().is_ok_and(|own| own == text);
    if let Some(field) = body.field("suffix")
        && !is_text(&field, "")
    {
        return Err(field.unsupported("text is generated after the prompt alone"));
    }
    if let Some(field) = body.field("best_of")
        && field.count(1..=usize::MAX)? != n
    {
        return Err(field.unsupported("it must equal n"));
    }
    for (tools, choice) in [("tools", "tool_choice"), ("functions", "function_call")] {
        let unused = body
            .field(choice)
            .is_some_and(|field| is_text(&field, "none"));
        if let Some(field) = body.field(tools)
            && !unused
            && !is_empty_list(&field)
        {
            return Err(field.unsupported(format!(
                "models are not given tools; leave it out, or set {choice} to \"none\""
            )));
        }
    }
    if let Some(field) = body.field("response_format") {
        let mut is_plain = false;
        field.members("an object", |name, value| {
            is_plain |= name == "type" && is_text(&value, "text");
            Ok(())
        })?;
        if !is_plain {
            return Err(field.unsupported("only {\"type\": \"text\"} is"));
        }
    }
    if let Some(field) = body.field("modalities") {
        field.items("a list", |index, raw| {
            let item = field.item(index, raw);
            match is_text(&item, "text") {
                true => Ok(()),
                false => Err(field.unsupported("only [\"text\"] is")),
            }
        })?;
    }
    for name in ["audio", "prediction"] {
        if let Some(field) = body.field(name) {
            return Err(field.unsupported(""));
        }
    }
    Ok(())
}

fn is_empty_list(field: &Field<'_>) -> bool {
    let mut empty = true;
    let read = field.items("a list", |_, _| {
        empty = false;
        Ok(())
    });
    empty && read.is_ok()
}
