//! The rule by which drafted tokens count.

use crate::sampling::Sampler;

/// Draws from the logits after a text, and after each drafted token as long as the draft is what was drawn: a drafted
/// token counts when the model itself draws it. So the text is the one without a draft, whatever is drafted.
///
/// The drawn tokens are appended to `text`, whose first `prompt` tokens are its prompt; one for which `ends` is true is
/// the last. Returns the number of drafted tokens that were drawn.
///
/// # Shapes
///
/// - `logits`: `[draft + 1, vocab_size]`
pub fn verify(
    sampler: &mut Sampler,
    logits: &[f32],
    text: &mut Vec<u32>,
    prompt: usize,
    draft: &[u32],
    ends: impl Fn(u32) -> bool,
) -> usize {
    let vocab_size = logits.len() / (draft.len() + 1);
    for (place, logits) in logits.chunks_exact(vocab_size).enumerate() {
        let (before, generated) = text.split_at(prompt);
        let drawn = sampler.sample(logits, before, generated);
        text.push(drawn);
        let accepted = draft.get(place) == Some(&drawn);
        if !accepted || ends(drawn) {
            return place + usize::from(accepted);
        }
    }
    draft.len()
}
