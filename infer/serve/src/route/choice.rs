//! Which replica a request goes to.
//!
//! Rendezvous hashing (Thaler and Ravishankar, 1998) with bounded loads: each pair of a prompt and a replica has a score, and
//! the highest one wins among the replicas that are not much busier than the least busy one. Prompts that begin alike so find
//! their beginning in the cache of one replica; when a replica comes or goes, only its own prompts move.

use std::hash::{DefaultHasher, Hash, Hasher};

/// A replica may have so many open requests more than the least busy one…
const EXTRA: usize = 4;

/// …and one more for each so many of those.
const EXTRA_OF: usize = 4;

/// A healthy replica.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its address.
    pub name: &'a str,
    /// Its open requests.
    pub open: usize,
}

/// The index of the replica for a prompt with this key. A request without a prompt goes to one of the least busy ones, to
/// another one at each `turn`. `None` when there are no candidates.
pub fn choose(
    candidates: &[Candidate<'_>],
    key: Option<u64>,
    turn: impl FnOnce() -> u64,
) -> Option<usize> {
    let least = candidates.iter().map(|candidate| candidate.open).min()?;
    let (key, most) = match key {
        Some(key) => (key, least + EXTRA + least / EXTRA_OF),
        None => (turn(), least),
    };
    let allowed = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.open <= most);
    let best = allowed.max_by_key(|(_, candidate)| score(key, candidate.name));
    best.map(|(index, _)| index)
}

fn score(key: u64, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, name).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 4] = ["a:1", "b:1", "c:1", "d:1"];

    fn candidates(open: &[usize]) -> Vec<Candidate<'static>> {
        let open = open.iter().copied();
        let candidates = NAMES.into_iter().zip(open);
        candidates
            .map(|(name, open)| Candidate { name, open })
            .collect()
    }

    fn chosen(candidates: &[Candidate<'_>], key: u64) -> &'static str {
        let index = choose(candidates, Some(key), || unreachable!()).unwrap();
        NAMES
            .into_iter()
            .find(|&name| name == candidates[index].name)
            .unwrap()
    }

    #[test]
    fn prompts_are_spread_evenly_and_stay_where_they_are() {
        let all = candidates(&[0; 4]);
        let mut counts = [0; 4];
        for key in 0..4000 {
            counts[choose(&all, Some(key), || unreachable!()).unwrap()] += 1;
        }
        assert!(
            counts.iter().all(|count| (900..1100).contains(count)),
            "{counts:?}"
        );
        // Without one replica, its prompts alone move.
        let without = &all[1..];
        for key in 0..4000 {
            let before = chosen(&all, key);
            assert!(before == NAMES[0] || before == chosen(without, key));
        }
    }

    #[test]
    fn a_busy_replica_passes_its_prompts_on() {
        let idle = candidates(&[0; 4]);
        let key = (0..).find(|&key| chosen(&idle, key) == NAMES[2]).unwrap();
        assert_eq!(chosen(&candidates(&[0, 0, 4, 0]), key), NAMES[2]);
        assert_ne!(chosen(&candidates(&[0, 0, 5, 0]), key), NAMES[2]);
        assert_eq!(chosen(&candidates(&[8, 8, 14, 8]), key), NAMES[2]);
        assert_ne!(chosen(&candidates(&[8, 8, 15, 8]), key), NAMES[2]);
    }

    #[test]
    fn requests_without_a_prompt_go_to_the_least_busy_in_turn() {
        let some = candidates(&[1, 0, 3, 0]);
        let mut counts = [0; 4];
        for turn in 0..100 {
            counts[choose(&some, None, || turn).unwrap()] += 1;
        }
        assert_eq!((counts[0], counts[2]), (0, 0));
        assert!(counts[1] > 20 && counts[3] > 20, "{counts:?}");
        assert_eq!(choose(&[], None, || 0), None);
    }

    proptest! {
        #[test]
        fn no_replica_gets_much_more_than_the_least_busy(keys in prop::collection::vec(0u64..3, 1..300)) {
            let mut open = [0; 4];
            for key in keys {
                let least = *open.iter().min().unwrap();
                let index = choose(&candidates(&open), Some(key), || unreachable!()).unwrap();
                open[index] += 1;
                prop_assert!(open[index] <= least + EXTRA + least / EXTRA_OF + 1);
            }
        }
    }
}
