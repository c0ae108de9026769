//! Which experts the steps of a network visit.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::Routing;

/// Share of a layer's experts that at least one of `tokens` tokens visits, where each visits `top_k` of `experts` that are
/// chosen evenly: `1 − (1 − k/E)^T`.
pub fn even_share(top_k: usize, experts: usize, tokens: f64) -> f64 {
    1.0 - (1.0 - top_k as f64 / experts as f64).powf(tokens)
}

/// What one layer's experts did over some steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertLoads {
    /// Index of the layer, from 0; dense layers count too.
    pub layer: usize,
    /// Tokens that were routed to each expert.
    pub tokens: Vec<u64>,
    /// Number of steps that visited so many experts, by that number from 0 on.
    pub visited: Vec<u64>,
}

impl ExpertLoads {
    /// Adds a step's routing to the loads of its layers.
    pub(crate) fn add(loads: &mut Vec<Self>, routing: &[Routing]) {
        if routing.is_empty() {
            return;
        }
        let counts = routing.iter().map(|routing| routing.plan.load(None));
        // One transfer for all layers.
        let counts = Tensor::cat(counts.collect(), 0).into_data();
        let counts: Vec<u64> = counts.iter::<f32>().map(|count| count as u64).collect();
        if loads.is_empty() {
            loads.extend(routing.iter().map(|routing| Self {
                layer: routing.layer,
                tokens: vec![0; routing.plan.experts()],
                visited: vec![0; routing.plan.experts() + 1],
            }));
        }
        let mut counts = counts.as_slice();
        for loads in loads {
            let (own, rest) = counts.split_at(loads.tokens.len());
            counts = rest;
            for (sum, count) in loads.tokens.iter_mut().zip(own) {
                *sum += count;
            }
            loads.visited[own.iter().filter(|&&count| count > 0).count()] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_visited_evenly() {
        assert_eq!(even_share(2, 16, 1.0), 0.125);
        assert!((even_share(2, 16, 2.0) - 0.234_375).abs() < 1e-12);
        assert!(even_share(2, 16, 64.0) > 0.9998);
        assert_eq!(even_share(4, 4, 1.0), 1.0);
    }
}
