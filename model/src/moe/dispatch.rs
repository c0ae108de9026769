//! The dispatch plan: assignments sorted by expert.

/// Which row of the experts' work belongs to which assignment.
///
/// Assignment `a` is the `a % k`-th choice of token `a / k`. Rows are the assignments sorted by expert,
/// in the order of tokens within an expert: a counting sort, so it takes `tokens · k + experts` steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DispatchPlan {
    /// Number of experts (E).
    pub experts: usize,
    /// Experts that each token visits (k).
    pub per_token: usize,
    /// The expert of each assignment.
    pub expert_of_assignment: Vec<u32>,
    /// The token whose activations a row holds.
    pub token_of_row: Vec<u32>,
    /// The row that an assignment went to.
    pub row_of_assignment: Vec<u32>,
    /// Rows `offsets[e] .. offsets[e + 1]` belong to expert e; E + 1 of them.
    pub offsets: Vec<usize>,
}

impl DispatchPlan {
    /// Sorts `chosen`, the experts of each token side by side, `per_token` a token.
    ///
    /// # Panics
    ///
    /// When `chosen` is no whole number of tokens, or names an expert that there is not.
    pub fn new(chosen: &[u32], experts: usize, per_token: usize) -> Self {
        assert!(
            chosen.len().is_multiple_of(per_token),
            "{} choices of {per_token} a token",
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
            token_of_row[row] = (assignment / per_token) as u32;
            row_of_assignment[assignment] = row as u32;
        }
        Self {
            experts,
            per_token,
            expert_of_assignment: chosen.to_vec(),
            token_of_row,
            row_of_assignment,
            offsets,
        }
    }

    /// Assignments to each expert from the tokens that `valid` marks; from all when it is absent.
    /// Padding is computed like any token but is no load.
    pub fn counts(&self, valid: Option<&[bool]>) -> Vec<u64> {
        let mut counts = vec![0; self.experts];
        for (assignment, &expert) in self.expert_of_assignment.iter().enumerate() {
            if valid.is_none_or(|valid| valid[assignment / self.per_token]) {
                counts[expert as usize] += 1;
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_assignment_is_lost_and_rows_stand_by_expert(
            (experts, per_token, chosen) in (1usize..20, 1usize..4, 0usize..60).prop_flat_map(
                |(experts, per_token, tokens)| (
                    Just(experts),
                    Just(per_token),
                    proptest::collection::vec(0..experts as u32, tokens * per_token),
                ),
            )
        ) {
            let plan = DispatchPlan::new(&chosen, experts, per_token);
            prop_assert_eq!(plan.offsets[experts], chosen.len());
            let mut rows: Vec<u32> = plan.row_of_assignment.clone();
            for (assignment, &row) in plan.row_of_assignment.iter().enumerate() {
                let row = row as usize;
                let expert = chosen[assignment] as usize;
                prop_assert!((plan.offsets[expert]..plan.offsets[expert + 1]).contains(&row));
                prop_assert_eq!(plan.token_of_row[row] as usize, assignment / per_token);
            }
            rows.sort_unstable();
            prop_assert!(rows.iter().enumerate().all(|(index, &row)| index == row as usize));
            let counts = plan.counts(None);
            for (count, bounds) in counts.iter().zip(plan.offsets.windows(2)) {
                prop_assert_eq!(*count as usize, bounds[1] - bounds[0]);
            }
        }
    }

    #[test]
    fn padding_is_no_load() {
        let plan = DispatchPlan::new(&[0, 1, 1, 2, 0, 2], 3, 2);
        assert_eq!(plan.counts(None), [2, 2, 2]);
        assert_eq!(plan.counts(Some(&[true, true, false])), [1, 2, 1]);
    }
}
