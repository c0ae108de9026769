//! Drafts from the text itself (prompt lookup): what followed where the last tokens occurred before.

/// The longest run of tokens that is compared.
const LONGEST: usize = 16;

/// The shortest run that says something.
const SHORTEST: usize = 2;

/// Up to `count` tokens that followed the longest earlier occurrence of the end of the text, the latest one among equals;
/// nothing if fewer than two tokens occurred before. Where these tokens reach the end of the text, it repeats itself, and is
/// taken to go on so.
pub fn continuation(text: &[u32], count: usize) -> Vec<u32> {
    let Some(&last) = text.last() else {
        return Vec::new();
    };
    let mut best = (SHORTEST - 1, text.len());
    for end in (1..text.len()).rev() {
        if text[end - 1] != last {
            continue;
        }
        let earlier = text[..end].iter().rev();
        let equal = earlier.zip(text.iter().rev()).take(LONGEST);
        let length = equal.take_while(|(a, b)| a == b).count();
        if length > best.0 {
            best = (length, end);
            if length == LONGEST {
                break;
            }
        }
    }
    let found = &text[best.1..];
    found.iter().copied().cycle().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_occurrence_wins_and_the_latest_among_equals() {
        let text = [1, 2, 3, 7, 8, 2, 3, 9, 8, 1, 2, 3];
        assert_eq!(continuation(&text, 2), [7, 8]);
        assert_eq!(continuation(&text[1..], 3), [9, 8, 1]);
        let twice = [2, 3, 4, 2, 3, 5, 2, 3];
        assert_eq!(continuation(&twice, 3), [5, 2, 3]);
    }

    #[test]
    fn a_single_token_says_nothing() {
        assert!(continuation(&[3, 4, 9, 3], 2).is_empty());
        assert!(continuation(&[], 2).is_empty());
        assert!(continuation(&[5], 2).is_empty());
    }

    #[test]
    fn a_text_that_repeats_itself_goes_on_so() {
        assert_eq!(continuation(&[5, 5, 5], 4), [5, 5, 5, 5]);
        assert_eq!(
            continuation(&[9, 1, 2, 3, 1, 2, 3, 1, 2], 7),
            [3, 1, 2, 3, 1, 2, 3]
        );
    }
}
