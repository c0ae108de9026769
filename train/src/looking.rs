//! Whether a model looks at the pictures of held-out captions; see [`firebox_model::looking`].

use firebox_console::numbers::percent;
use firebox_model::evaluate::Evaluation;
use firebox_model::language_model::LanguageModel;
use firebox_model::looking::{CANDIDATES, CaptionLoss, Effort, look, whole};
use firebox_model::moe::stats::HealthSums;
use firebox_model::network::Local;
use firebox_text::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::data::{HeldOutCaptions, HeldOutPicture};

/// How well the held-out captions of one kind are predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOutLoss {
    /// Why they are held out.
    pub held_out: HeldOutPicture,
    /// Their loss.
    #[serde(flatten)]
    pub loss: CaptionLoss,
}

impl HeldOutLoss {
    /// One line for people.
    pub fn sentence(&self) -> String {
        let CaptionLoss {
            captions,
            right,
            other,
            none,
            found,
            tried,
            ..
        } = self.loss;
        let what = self.held_out.plural();
        let another = other.map_or(String::new(), |other| {
            format!("{other:.4} behind another, ")
        });
        let of_several = match tried {
            0 => String::new(),
            _ => format!("; right caption of {CANDIDATES}: {}", percent(found)),
        };
        format!(
            "{captions} captions of new {what}: {right:.4} nats per token behind the right picture, {another}{none:.4} \
             behind none{of_several}"
        )
    }
}

/// Evaluates held-out captions: all of them behind their pictures, and each kind. `progress` is called with the number of rows
/// done.
pub fn evaluate(
    model: &LanguageModel,
    parts: &[HeldOutCaptions],
    tokenizer: &Tokenizer,
    mut progress: impl FnMut(u64),
) -> (Evaluation, Vec<HeldOutLoss>) {
    let mut done = 0;
    let mut health = HealthSums::default();
    let mut losses = Vec::new();
    for HeldOutCaptions { part, captions } in parts {
        let network = &mut Local::new(model);
        let looks = look(network, captions, Effort::default(), &mut health, |rows| {
            done += rows;
            progress(done);
        });
        let learned = captions.iter().map(|caption| caption.learned());
        let bytes = learned.map(|tokens| tokenizer.bytes_of(tokens)).sum();
        losses.push(HeldOutLoss {
            held_out: *part,
            loss: CaptionLoss::of(looks.iter(), bytes),
        });
    }
    let evaluation = whole(losses.iter().map(|of| &of.loss), &health);
    (evaluation, losses)
}

/// The rows that [`evaluate`] computes.
pub fn rows(parts: &[HeldOutCaptions]) -> u64 {
    let rows = |part: &HeldOutCaptions| Effort::default().rows_of(part.captions.len());
    parts.iter().map(rows).sum()
}
