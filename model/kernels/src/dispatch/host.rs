//! The dispatch plan over slices.

use std::ops::Range;

/// The row of an assignment to an expert that the plan does not have; see [`HostPlan::part`].
pub const ELSEWHERE: u32 = u32::MAX;

/// Which row of the experts' work belongs to which assignment; see [`Tables`](super::Tables).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPlan {
    /// Number of experts (E).
    pub experts: usize,
    /// Experts that each token visits (k).
    pub top_k: usize,
    /// The expert of each assignment, counted among all experts also in a [`part`](Self::part).
    pub expert_of_assignment: Vec<u32>,
    /// The token whose activations a row holds.
    pub token_of_row: Vec<u32>,
    /// The row that an assignment went to; [`ELSEWHERE`] if that is none of this plan's.
    pub row_of_assignment: Vec<u32>,
    /// Rows `offsets[e] .. offsets[e + 1]` belong to expert e; E + 1 of them.
    pub offsets: Vec<usize>,
}

impl HostPlan {
    /// Sorts `chosen`, the experts of each token side by side, `top_k` a token: a counting sort, so it takes
    /// `tokens · k + experts` steps.
    ///
    /// # Panics
    ///
    /// When the length of `chosen` is not a multiple of `top_k`, or an index is not below `experts`.
    pub fn new(chosen: &[u32], experts: usize, top_k: usize) -> Self {
        assert!(
            chosen.len().is_multiple_of(top_k),
            "{} choices of {top_k} a token",
            chosen.len()
        );
        let mut offsets = vec![0; experts + 1];
        for &expert in chosen {
            offsets[expert as usize + 1] += 1;
        }
        for expert in 0..experts {
            offsets[expert + 1] += offsets[expert];
        }
        let mut next = offsets.clone();
        let mut token_of_row = vec![0; chosen.len()];
        let mut row_of_assignment = vec![0; chosen.len()];
        for (assignment, &expert) in chosen.iter().enumerate() {
            let row = next[expert as usize];
            next[expert as usize] += 1;
            token_of_row[row] = (assignment / top_k) as u32;
            row_of_assignment[assignment] = row as u32;
        }
        Self {
            experts,
            top_k,
            expert_of_assignment: chosen.to_vec(),
            token_of_row,
            row_of_assignment,
            offsets,
        }
    }

    /// The plan of the rows of some of the experts, which `offsets` counts from 0: the rows of the others are left out. The
    /// assignments are all still there.
    ///
    /// # Panics
    ///
    /// When there are no such experts.
    pub fn part(&self, experts: Range<usize>) -> Self {
        let rows = self.offsets[experts.start]..self.offsets[experts.end];
        let row_of_assignment =
            self.row_of_assignment
                .iter()
                .map(|&row| match rows.contains(&(row as usize)) {
                    true => row - rows.start as u32,
                    false => ELSEWHERE,
                });
        let offsets = self.offsets[experts.start..=experts.end].iter();
        Self {
            experts: experts.len(),
            top_k: self.top_k,
            expert_of_assignment: self.expert_of_assignment.clone(),
            row_of_assignment: row_of_assignment.collect(),
            offsets: offsets.map(|offset| offset - rows.start).collect(),
            token_of_row: self.token_of_row[rows].to_vec(),
        }
    }

    /// Assignments to each expert from the tokens that `valid` marks with 1; of a whole plan.
    pub fn load(&self, valid: &[f32]) -> Vec<f32> {
        let mut load = vec![0.0; self.experts];
        for (assignment, &expert) in self.expert_of_assignment.iter().enumerate() {
            load[expert as usize] += valid[assignment / self.top_k];
        }
        load
    }
}

/// The `top_k` experts with the largest `score + bias` of each token, largest first; of equal ones
/// the lower number. `scores` holds `experts` values a token; `bias` as many, or none.
pub fn choose(scores: &[f32], bias: &[f32], experts: usize, top_k: usize) -> Vec<u32> {
    let mut chosen = Vec::with_capacity(scores.len() / experts * top_k);
    let mut order: Vec<u32> = Vec::with_capacity(experts);
    for scores in scores.chunks_exact(experts) {
        let score = |expert: u32| {
            let expert = expert as usize;
            scores[expert] + bias.get(expert).copied().unwrap_or(0.0)
        };
        order.clear();
        order.extend(0..experts as u32);
        let by_score = |&a: &u32, &b: &u32| score(b).total_cmp(&score(a)).then(a.cmp(&b));
        if top_k < experts {
            order.select_nth_unstable_by(top_k, by_score);
        }
        order[..top_k].sort_unstable_by(by_score);
        chosen.extend_from_slice(&order[..top_k]);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_assignment_is_lost_and_rows_stand_by_expert(
            (experts, top_k, chosen) in (1usize..20, 1usize..4, 0usize..60).prop_flat_map(
                |(experts, top_k, tokens)| (
                    Just(experts),
                    Just(top_k),
                    proptest::collection::vec(0..experts as u32, tokens * top_k),
                ),
            )
        ) {
            let plan = HostPlan::new(&chosen, experts, top_k);
            prop_assert_eq!(plan.offsets[experts], chosen.len());
            let mut rows: Vec<u32> = plan.row_of_assignment.clone();
            for (assignment, &row) in plan.row_of_assignment.iter().enumerate() {
                let row = row as usize;
                let expert = chosen[assignment] as usize;
                prop_assert!((plan.offsets[expert]..plan.offsets[expert + 1]).contains(&row));
                prop_assert_eq!(plan.token_of_row[row] as usize, assignment / top_k);
            }
            rows.sort_unstable();
            prop_assert!(rows.iter().enumerate().all(|(index, &row)| index == row as usize));
            let load = plan.load(&vec![1.0; chosen.len() / top_k]);
            for (load, bounds) in load.iter().zip(plan.offsets.windows(2)) {
                prop_assert_eq!(*load as usize, bounds[1] - bounds[0]);
            }
        }

        #[test]
        fn the_choice_is_that_of_a_full_sort(
            (experts, top_k, scores, bias) in (1usize..12).prop_flat_map(|experts| (
                Just(experts),
                1..=experts,
                (0usize..6).prop_flat_map(move |tokens| proptest::collection::vec(0u8..4, tokens * experts)),
                prop_oneof![Just(vec![]), proptest::collection::vec(-1i8..2, experts)],
            ))
        ) {
            // Small integers, so that ties are common.
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let bias: Vec<f32> = bias.into_iter().map(f32::from).collect();
            let chosen = choose(&scores, &bias, experts, top_k);
            let mut expected = Vec::new();
            for scores in scores.chunks(experts) {
                let mut order: Vec<usize> = (0..experts).collect();
                let biased = |e: usize| scores[e] + bias.get(e).unwrap_or(&0.0);
                order.sort_by(|&a, &b| biased(b).total_cmp(&biased(a)));
                expected.extend(order[..top_k].iter().map(|&e| e as u32));
            }
            prop_assert_eq!(chosen, expected);
        }
    }

    #[test]
    fn padding_is_not_counted() {
        let plan = HostPlan::new(&[0, 1, 1, 2, 0, 2], 3, 2);
        assert_eq!(plan.load(&[1.0, 1.0, 1.0]), [2.0, 2.0, 2.0]);
        assert_eq!(plan.load(&[1.0, 1.0, 0.0]), [1.0, 2.0, 1.0]);
    }
}
