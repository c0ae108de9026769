//! The text of a validation: everything that is held out, or a sample of it.

use firebox_model::permutation::Permutation;

use firebox_text::Tokenizer;

use super::error::DataError;
use super::shards::TokenSet;

/// What is held out of a source.
#[derive(Debug)]
pub(super) struct HeldOut {
    /// The source's name.
    pub source: String,
    /// Bytes of its held-out text.
    pub bytes: u64,
    /// Its documents that are also trained on, word for word.
    pub copies: u64,
    /// Whether it is captions, whose pictures the model sees.
    pub has_pictures: bool,
    /// Its tokens.
    pub set: TokenSet,
}

/// The part of a validation that comes from one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidationPart {
    /// The source's name.
    pub source: String,
    /// Each window is up to `context` inputs and one more token, the last target.
    pub windows: Vec<Vec<u32>>,
    /// UTF-8 bytes of all targets.
    pub bytes: u64,
}

impl ValidationPart {
    /// Number of predicted tokens.
    pub fn targets(&self) -> u64 {
        self.windows.iter().map(|window| targets(window)).sum()
    }
}

fn targets(window: &[u32]) -> u64 {
    window.len().saturating_sub(1) as u64
}

/// The held-out text of all sources if it has at most `limit` targets, otherwise a sample of at most that many.
///
/// The text of a source is cut into windows of `context` targets, as `infer eval` cuts a file. A sample has as many
/// windows of each source as is its part of all windows, and at least one if there are enough for that. They lie all
/// over the source: one at random in each of as many stretches of equal length. The sample depends on nothing but
/// the held-out text, `context` and `limit`, so that validations can be compared within a run and between runs.
///
/// # Errors
///
/// When the tokens cannot be read.
pub(super) fn sample(
    sources: &[&HeldOut],
    tokenizer: &Tokenizer,
    context: usize,
    limit: u64,
) -> Result<Vec<ValidationPart>, DataError> {
    let context = context.max(1) as u64;
    let targets = |source: &&HeldOut| source.set.tokens().saturating_sub(1);
    let windows: Vec<u64> = sources
        .iter()
        .map(|source| targets(source).div_ceil(context))
        .collect();
    let whole = sources.iter().map(targets).sum::<u64>() <= limit;
    let quotas = match whole {
        true => windows.clone(),
        false => apportion((limit / context).max(1), &windows),
    };
    let mut parts = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let (quota, windows) = (quotas[index], windows[index]);
        if quota == 0 {
            continue;
        }
        let mut part = ValidationPart {
            source: source.source.clone(),
            windows: Vec::with_capacity(quota as usize),
            bytes: 0,
        };
        for stretch in 0..quota {
            let start = chosen(stretch, quota, windows, index) * context;
            // A limit below the context cuts the only window.
            let end = start + context.min(limit) + 1;
            let mut window = Vec::new();
            let range = start..end.min(source.set.tokens());
            source.set.read(range, &mut window)?;
            part.bytes += tokenizer.bytes_of(&window[1..]);
            part.windows.push(window);
        }
        if whole {
            part.bytes = source.bytes - first_bytes(source, tokenizer)?;
        }
        parts.push(part);
    }
    Ok(parts)
}

/// Bytes of the first token of a source's held-out text, which is not a target.
fn first_bytes(source: &HeldOut, tokenizer: &Tokenizer) -> Result<u64, DataError> {
    let mut first = Vec::new();
    source.set.read(0..1, &mut first)?;
    Ok(tokenizer
        .bytes_of(&first)
        .min(source.set.document(0)?.bytes))
}

/// The window that represents a stretch of a source: of `quota` stretches of all `windows`.
fn chosen(stretch: u64, quota: u64, windows: u64, source: usize) -> u64 {
    let bound = |number: u64| (u128::from(number) * u128::from(windows) / u128::from(quota)) as u64;
    let (first, end) = (bound(stretch), bound(stretch + 1));
    first + Permutation::new(end - first, 0, [source as u64, stretch]).at(0)
}

/// Divides `count` among sources in proportion to their `sizes`: each gets its part to within one, at least one if there
/// are enough, and none more than its size.
fn apportion(count: u64, sizes: &[u64]) -> Vec<u64> {
    let all: u64 = sizes.iter().sum();
    let count = count.min(all);
    let ideal = |size: u64| count as f64 * size as f64 / all.max(1) as f64;
    let sources = sizes.iter().filter(|&&size| size > 0).count() as u64;
    let least = u64::from(count >= sources);
    let mut quotas: Vec<u64> = sizes
        .iter()
        .map(|&size| (ideal(size) as u64).max(least).min(size))
        .collect();
    let mut given: u64 = quotas.iter().sum();
    while given != count {
        // What each source lacks, or has too much where all together have.
        let sign = if given < count { 1.0 } else { -1.0 };
        let lack = |&source: &usize| sign * (ideal(sizes[source]) - quotas[source] as f64);
        let may_change = |source: &usize| match given < count {
            true => quotas[*source] < sizes[*source],
            false => quotas[*source] > least,
        };
        let most = (0..sizes.len())
            .filter(may_change)
            .max_by(|a, b| lack(a).total_cmp(&lack(b)).then(b.cmp(a)));
        let source = most.expect("the count is between all least and all sizes");
        if given < count {
            quotas[source] += 1;
            given += 1;
        } else {
            quotas[source] -= 1;
            given -= 1;
        }
    }
    quotas
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::shards::tests::sets;
    use super::*;

    fn held_out(sources: &[Vec<usize>]) -> (tempfile::TempDir, Vec<HeldOut>) {
        let (folder, sets) = sets(sources);
        let sets = Arc::into_inner(sets).unwrap();
        let held_out = sets.into_iter().zip(sources).enumerate();
        let held_out = held_out.map(|(index, (set, lengths))| HeldOut {
            source: format!("{index}"),
            bytes: lengths.iter().sum::<usize>() as u64,
            copies: 0,
            has_pictures: false,
            set,
        });
        (folder, held_out.collect())
    }

    fn sample(
        sources: &[HeldOut],
        tokenizer: &Tokenizer,
        context: usize,
        limit: u64,
    ) -> Result<Vec<ValidationPart>, DataError> {
        let sources: Vec<&HeldOut> = sources.iter().collect();
        super::sample(&sources, tokenizer, context, limit)
    }

    #[test]
    fn a_sample_has_its_part_of_every_source() {
        // 1000, 3000 and 8 tokens, and a source of which nothing is held out.
        let (_folder, sources) = held_out(&[vec![99; 10], vec![], vec![299; 10], vec![7]]);
        let tokenizer = Tokenizer::bytes();
        let parts = sample(&sources, &tokenizer, 10, 400).unwrap();
        let amounts: Vec<_> = parts
            .iter()
            .map(|part| (part.source.as_str(), part.windows.len(), part.targets()))
            .collect();
        assert_eq!(amounts, [("0", 10, 100), ("2", 29, 290), ("3", 1, 7)]);
        // One window in each tenth of the first source, which is one to each of its documents.
        let firsts: Vec<u32> = parts[0].windows.iter().map(|window| window[0]).collect();
        assert!(firsts.is_sorted());
        // The same every time, and none twice.
        assert_eq!(sample(&sources, &tokenizer, 10, 400).unwrap(), parts);
        let distinct: HashSet<&Vec<u32>> = parts.iter().flat_map(|part| &part.windows).collect();
        assert_eq!(distinct.len(), 40);
    }

    #[test]
    fn what_is_below_the_limit_is_taken_whole() {
        let (_folder, sources) = held_out(&[vec![9, 14], vec![5]]);
        let tokenizer = Tokenizer::bytes();
        for limit in [29, u64::MAX] {
            let parts = sample(&sources, &tokenizer, 10, limit).unwrap();
            let amounts: Vec<_> = parts
                .iter()
                .map(|part| (part.windows.len(), part.targets(), part.bytes))
                .collect();
            // 25 and 6 tokens, of which the first is not a target, and 23 and 5 bytes.
            assert_eq!(amounts, [(3, 24, 22), (1, 5, 4)]);
        }
        // One token less than there are, and less than a window.
        for (limit, expected) in [(28, vec![10, 5]), (10, vec![10]), (4, vec![4])] {
            let parts = sample(&sources, &tokenizer, 10, limit).unwrap();
            let targets: Vec<u64> = parts.iter().map(ValidationPart::targets).collect();
            assert_eq!(targets, expected, "{limit}");
        }
    }

    proptest! {
        #[test]
        fn parts_are_in_proportion(sizes in prop::collection::vec(0u64..500, 1..6), count in 1u64..1000) {
            let all: u64 = sizes.iter().sum();
            let quotas = apportion(count, &sizes);
            prop_assert_eq!(quotas.iter().sum::<u64>(), count.min(all));
            for (&quota, &size) in quotas.iter().zip(&sizes) {
                let ideal = count.min(all) as f64 * size as f64 / all.max(1) as f64;
                prop_assert!(quota <= size);
                // Sources that get one although their part is smaller take it from the others.
                prop_assert!((quota as f64 - ideal).abs() <= sizes.len() as f64, "{:?}", quotas);
                if count >= sizes.len() as u64 {
                    prop_assert!(quota > 0 || size == 0);
                }
            }
        }

        #[test]
        fn windows_are_distinct_and_spread(windows in 1u64..2000, part in 0.0f64..=1.0) {
            let quota = ((windows as f64 * part) as u64).max(1);
            let found: Vec<u64> = (0..quota).map(|stretch| chosen(stretch, quota, windows, 0)).collect();
            prop_assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", found);
            for (stretch, window) in found.iter().enumerate() {
                let middle = (stretch as f64 + 0.5) * windows as f64 / quota as f64;
                prop_assert!((*window as f64 - middle).abs() <= windows as f64 / quota as f64 + 1.0);
            }
        }
    }
}
