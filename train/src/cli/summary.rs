//! What `cargo train run` prints when it ends.

use crate::metrics::Validation;
use crate::trainer::Outcome;

/// The result of a run, as text for standard output.
pub(super) fn summary(outcome: &Outcome) -> String {
    let Outcome {
        validation,
        sample,
        checkpoint,
        lowest,
    } = outcome;
    let checkpoint = checkpoint.display();
    let mut text = String::new();
    if let Some(sample) = sample {
        text += &format!("sample:\n{sample}\n\n");
    }
    let Validation {
        whole,
        sources,
        captions,
    } = validation;
    text += &format!(
        "validation: {:.6} nats per token, {:.6} bits per byte, on {} tokens\n",
        whole.nats_per_token, whole.bits_per_byte, whole.tokens
    );
    if sources.len() + captions.len() > 1 {
        for source in sources {
            text += &format!(
                "            {:.6} nats per token, {:.6} bits per byte, on {} tokens of {:?}\n",
                source.nats_per_token, source.bits_per_byte, source.tokens, source.name
            );
        }
    }
    for loss in captions {
        text += &format!("            {}\n", loss.sentence());
    }
    for lowest in lowest {
        text += &format!(
            "            lowest of new {}: {:.4} nats per token, at step {}\n",
            lowest.held_out.plural(),
            lowest.nats_per_token,
            lowest.step
        );
    }
    text + &format!(
        "checkpoint: {checkpoint}\n\
         try it:     cargo infer generate {checkpoint} --prompt \"…\"\n"
    )
}
