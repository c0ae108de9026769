//! What changes single logits: a bias, and penalties of tokens that occurred before.

use super::Row;

/// Memory to compute them in.
#[derive(Debug, Clone, Default)]
pub struct Penalties {
    logits: Vec<f32>,
    ids: Vec<u32>,
}

impl Penalties {
    /// A row's logits after the bias and the penalties: for repetition first, then for presence and frequency. They are those
    /// of a part of the vocabulary, which begins with id `first`.
    pub fn apply<'a>(&'a mut self, row: &Row<'a>, first: u32) -> &'a [f32] {
        let Row {
            logits,
            sampling,
            bias,
            prompt,
            generated,
            ..
        } = *row;
        let repetition = sampling.repetition_penalty as f32;
        let presence = sampling.presence_penalty as f32;
        let frequency = sampling.frequency_penalty as f32;
        if bias.is_empty() && !sampling.has_penalties() {
            return logits;
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        for &(id, bias) in bias {
            let place = id.checked_sub(first);
            if let Some(logit) = place.and_then(|place| self.logits.get_mut(place as usize)) {
                *logit += bias;
            }
        }
        let mut each = |texts: [&[u32]; 2], change: &dyn Fn(&mut f32, usize)| {
            self.ids.clear();
            self.ids.extend(texts.into_iter().flatten());
            self.ids.sort_unstable();
            for same in self.ids.chunk_by(|a, b| a == b) {
                let place = same[0].checked_sub(first);
                if let Some(logit) = place.and_then(|place| self.logits.get_mut(place as usize)) {
                    change(logit, same.len());
                }
            }
        };
        if repetition != 1.0 {
            each([prompt, generated], &|logit, _| match *logit > 0.0 {
                true => *logit /= repetition,
                false => *logit *= repetition,
            });
        }
        if presence != 0.0 || frequency != 0.0 {
            each([generated, &[]], &|logit, count| {
                *logit -= presence + frequency * count as f32;
            });
        }
        &self.logits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Sampling;

    #[test]
    fn by_hand() {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..Sampling::default()
        };
        let mut penalties = Penalties::default();
        let logits = [4.0, -4.0, 0.0, 3.0, 1.0];
        // Token 9 is not in the vocabulary.
        let row = Row {
            logits: &logits,
            sampling,
            bias: &[],
            prompt: &[0, 0, 9],
            generated: &[1, 3, 3],
            position: 3,
        };
        // 0: 4/2. 1: −4·2 − 0.5 − 0.25. 3: 3/2 − 0.5 − 2·0.25.
        assert_eq!(penalties.apply(&row, 0), [2.0, -8.75, 0.0, 0.5, 1.0]);
        let part = Row {
            logits: &logits[2..4],
            ..row
        };
        assert_eq!(penalties.apply(&part, 2), [0.0, 0.5]);
        // The bias comes first: 0: (4 + 2)/2, 3: (3 − 5)·2 − 0.5 − 2·0.25.
        let bias = &[(0, 2.0), (3, -5.0), (9, 1.0)];
        assert_eq!(
            penalties.apply(&Row { bias, ..row }, 0),
            [3.0, -8.75, 0.0, -5.0, 1.0]
        );
        let sampling = Sampling::default();
        assert_eq!(penalties.apply(&Row { sampling, ..row }, 0), logits);
        let biased = Row {
            sampling,
            bias,
            ..row
        };
        assert_eq!(penalties.apply(&biased, 0), [6.0, -4.0, 0.0, -2.0, 1.0]);
    }
}
