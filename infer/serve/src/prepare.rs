//! From a request to jobs: prompts become tokens, and whatever depends on the model is checked.

use std::sync::Arc;

use firebox_model::sampling::Sampling;
use firebox_text::StreamDecoder;

use crate::error::ApiError;
use crate::job::{Inbox, Job};
use crate::pictures::{PictureInput, RequestPictures};
use crate::reply::{Echo, PromptInfo};
use crate::request::{ChatRequest, CompletionRequest, Generation, Message, Prompt};
use crate::served::Served;
use crate::text::{Stops, TextWriter};

/// The most tokens to generate where a request for a completion does not say.
const DEFAULT_TOKENS: usize = 16;

/// A request whose jobs can be submitted.
#[derive(Debug)]
pub struct Prepared {
    /// One for each choice of each prompt: prompt 0's choices, then prompt 1's.
    pub jobs: Vec<Job>,
    /// Receives what happens to them.
    pub inbox: Inbox,
    /// What the reply says of each prompt.
    pub prompts: Vec<PromptInfo>,
}

/// The jobs of a request for completions.
///
/// # Errors
///
/// The first thing that is wrong with it.
pub fn completion(served: &Served, request: &CompletionRequest) -> Result<Prepared, ApiError> {
    let generation = &request.generation;
    served.check_model(generation.model.as_deref())?;
    let mut prompts = Vec::with_capacity(request.prompts.len());
    for prompt in &request.prompts {
        let ids = match prompt {
            Prompt::Text(text) => served.encode_prompt("prompt", text, true)?,
            Prompt::Ids(ids) => {
                served.check_ids("prompt", ids.iter().copied())?;
                ids.clone()
            }
        };
        if ids.is_empty() {
            return Err(ApiError::InvalidValue {
                param: "prompt".to_owned(),
                message: "prompt is empty, and this model's texts begin with no token of their own; a client that cuts \
                          prompts to fit (lm-eval without max_length) may have left nothing of it"
                    .to_owned(),
            });
        }
        let limit = Limit {
            param: "prompt",
            asked: generation.max_tokens,
            default: DEFAULT_TOKENS,
            context: served.context,
        };
        let echo = request.echo.then(|| echo(served, prompt, &ids, generation));
        prompts.push(ReadPrompt {
            count: limit.count(ids.len())?,
            ids: ids.into(),
            pictures: None,
            echo,
        });
    }
    let prompt_scores = request.echo && request.logprobs.is_some();
    jobs(served, generation, prompts, request.logprobs, prompt_scores)
}

/// The jobs of a request for the next message of a chat.
///
/// # Errors
///
/// The first thing that is wrong with it.
pub fn chat(served: &Served, request: &ChatRequest) -> Result<Prepared, ApiError> {
    let generation = &request.generation;
    served.check_model(generation.model.as_deref())?;
    let messages = &request.messages;
    let mut shown = messages.iter().flat_map(Message::pictures);
    let seen = match &served.pictures {
        Some(input) => input.read(messages)?.map(|pictures| (input, pictures)),
        None => match shown.next() {
            None => None,
            Some(picture) => {
                return Err(ApiError::Unsupported {
                    param: picture.param.clone(),
                    reason: "this server reads text alone".to_owned(),
                });
            }
        },
    };
    let seeing = seen.as_ref();
    let seeing = seeing.map(|(input, pictures)| (*input, pictures.pictures.len()));
    let (text, begin) = chat_text(served, request, seeing.map(|(input, _)| input))?;
    let ids = match seeing {
        None => served.encode_prompt("messages", &text, begin)?,
        Some(seeing) => served.encode_seeing("messages", &text, begin, seeing)?,
    };
    if ids.is_empty() {
        return Err(refused(
            "the checkpoint's chat template makes an empty text of the messages".to_owned(),
        ));
    }
    let limit = Limit {
        param: "messages",
        asked: generation.max_tokens,
        default: usize::MAX,
        context: served.context,
    };
    let prompts = vec![ReadPrompt {
        count: limit.count(ids.len())?,
        ids: ids.into(),
        pictures: seen.map(|(_, pictures)| Arc::new(pictures)),
        echo: None,
    }];
    jobs(served, generation, prompts, request.logprobs, false)
}

/// The text of a chat, and whether the token that begins texts is to be put before it. `input` is there if the messages have
/// pictures.
fn chat_text(
    served: &Served,
    request: &ChatRequest,
    input: Option<&PictureInput>,
) -> Result<(String, bool), ApiError> {
    let messages = &request.messages;
    let template = match (&served.template, input, &messages[..]) {
        (Some(Ok(template)), ..) => template,
        // A model that continues texts is shown a picture and the text behind it.
        (None, Some(_), [only]) => return Ok((only.text(""), true)),
        (None, Some(_), _) => {
            return Err(refused(
                "the checkpoint has no chat template, so pictures come with a single message, whose text is continued"
                    .to_owned(),
            ));
        }
        (Some(Err(error)), ..) => return Err(refused(format!("{error}; use /v1/completions"))),
        (None, None, _) => {
            return Err(refused(
                "the checkpoint has no chat template, so messages cannot be written as a text; use /v1/completions"
                    .to_owned(),
            ));
        }
    };
    let picture = input.and_then(|input| input.image_text.as_deref());
    let text = template.render(messages, &request.variables, picture.unwrap_or_default());
    // A template writes the token itself that begins texts.
    Ok((text.map_err(|error| refused(error.to_string()))?, false))
}

/// The error of messages.
fn refused(message: String) -> ApiError {
    ApiError::InvalidValue {
        param: "messages".to_owned(),
        message,
    }
}

/// How many tokens may be generated.
struct Limit {
    param: &'static str,
    asked: Option<usize>,
    default: usize,
    context: usize,
}

impl Limit {
    /// After a prompt of so many tokens.
    fn count(&self, prompt: usize) -> Result<usize, ApiError> {
        let room = self.context.checked_sub(prompt);
        let exceeded = |count| ApiError::ContextLength {
            param: self.param,
            prompt,
            count,
            context: self.context,
        };
        match (self.asked, room) {
            (Some(count), Some(room)) if count <= room => Ok(count),
            (Some(count), _) => Err(exceeded(count)),
            (None, Some(room @ 1..)) => Ok(room.min(self.default)),
            (None, _) => Err(exceeded(1)),
        }
    }
}

/// A prompt that was read.
struct ReadPrompt {
    ids: Arc<[u32]>,
    /// What it sees.
    pictures: Option<Arc<RequestPictures>>,
    /// The most tokens to generate after it.
    count: usize,
    echo: Option<Echo>,
}

fn jobs(
    served: &Served,
    generation: &Generation,
    prompts: Vec<ReadPrompt>,
    scores: Option<usize>,
    prompt_scores: bool,
) -> Result<Prepared, ApiError> {
    served.check_ids("stop_token_ids", generation.stop_ids.iter().copied())?;
    served.check_ids("logit_bias", generation.bias.iter().map(|&(id, _)| id))?;
    let bias: Arc<[(u32, f32)]> = generation.bias.as_slice().into();
    let stop_ids: Arc<[u32]> = generation.stop_ids.as_slice().into();
    let stops = Stops::new(&generation.stops);
    let (inbox, events) = Inbox::new(prompts.len() * generation.n);
    let mut events = events.into_iter();
    let mut jobs = Vec::with_capacity(events.len());
    let mut infos = Vec::with_capacity(prompts.len());
    for read in prompts {
        let prompt = read.ids;
        let text = TextWriter::new(
            served.tokenizer.clone(),
            &prompt,
            generation.special_tokens,
            stops.clone(),
            generation.include_stop,
        );
        // Without a seed, equal prompts have different texts.
        let seed = match generation.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|error| {
                tracing::error!("the system gives no randomness: {error}");
                ApiError::Internal
            })?,
        };
        for (choice, events) in (0..).zip(events.by_ref().take(generation.n)) {
            jobs.push(Job {
                prompt: prompt.clone(),
                pictures: read.pictures.clone(),
                count: read.count,
                sampling: Sampling {
                    seed,
                    choice,
                    ..generation.sampling
                },
                bias: bias.clone(),
                stop_ids: stop_ids.clone(),
                ignore_eos: generation.ignore_eos,
                scores,
                prompt_scores,
                text: text.clone(),
                events,
            });
        }
        infos.push(PromptInfo {
            ids: prompt,
            echo: read.echo,
        });
    }
    Ok(Prepared {
        jobs,
        inbox,
        prompts: infos,
    })
}

/// The text of a prompt as a reply repeats it, and where each of its tokens begins.
fn echo(served: &Served, prompt: &Prompt, ids: &[u32], generation: &Generation) -> Echo {
    // A text shows the special tokens that it spells, but not the one that begins it.
    let (special_tokens, hidden) = match prompt {
        Prompt::Text(_) => (true, served.tokenizer.bos_ids().len()),
        Prompt::Ids(_) => (generation.special_tokens, 0),
    };
    let mut decoder = StreamDecoder::new(&*served.tokenizer, special_tokens);
    let (mut text, mut offset) = (String::new(), 0);
    let mut offsets = Vec::with_capacity(ids.len());
    for (index, &id) in ids.iter().enumerate() {
        offsets.push(offset);
        if index >= hidden
            && let Some(piece) = decoder.push(id)
        {
            offset += piece.chars().count();
            text.push_str(&piece);
        }
    }
    if let Prompt::Text(given) = prompt {
        // They differ where the tokenizer normalizes texts.
        offset = given.chars().count();
        let in_text = |at: &mut usize| *at = (*at).min(offset);
        offsets.iter_mut().for_each(in_text);
        text.clone_from(given);
    }
    Echo {
        text,
        length: offset,
        offsets,
    }
}
