//! How different several texts are, apart from how good they are.
//!
//! **Words** are the longest runs of letters and digits (Unicode), in lower case; an apostrophe or a hyphen between two of them
//! belongs to the word. All else separates. So "Don't stop-gap, 3.5!" is `don't`, `stop-gap`, `3`, `5`.

use std::collections::HashSet;
use std::hash::Hash;

/// The words of a text, in order.
pub fn words(text: &str) -> Vec<String> {
    let inner = |c: char| matches!(c, '\'' | '\u{2019}' | '-');
    text.split(|c: char| !c.is_alphanumeric() && !inner(c))
        .map(|word| word.trim_matches(inner).to_lowercase())
        .filter(|word| !word.is_empty())
        .collect()
}

/// Types over tokens, where the texts are long enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TypeTokenRatio {
    /// Words that were to be counted: B.
    pub budget: usize,
    /// Words that all texts have together.
    pub words: usize,
    /// `(different words among the first B) / B`, above 0 and at most 1; `None` if there are fewer than B.
    pub ratio: Option<f64>,
}

/// The type-token ratio of the first `budget` words of the texts, in their order, as one sequence.
///
/// The ratio falls with the number of words, by itself: ratios are comparable at one budget alone, which is why it is given and
/// why too few words give none. Panics if the budget is 0.
pub fn type_token_ratio<T: AsRef<str>>(texts: &[T], budget: usize) -> TypeTokenRatio {
    assert!(budget > 0, "type_token_ratio: a budget of 0 words");
    let pooled: Vec<String> = texts.iter().flat_map(|text| words(text.as_ref())).collect();
    let ratio = pooled.get(..budget).map(|first| distinct(first) as f64 / budget as f64);
    TypeTokenRatio { budget, words: pooled.len(), ratio }
}

/// Distinct-n (Li et al., arXiv 1510.03055): `(different n-grams of words) / (n-grams of words)` over all texts, no n-gram across
/// two of them; `None` if none is that long. Like every ratio of this kind it falls with the amount of text. Panics if n is 0.
pub fn distinct_n<T: AsRef<str>>(texts: &[T], n: usize) -> Option<f64> {
    assert!(n > 0, "distinct_n: n-grams of 0 words");
    let texts: Vec<Vec<String>> = texts.iter().map(|text| words(text.as_ref())).collect();
    let n_grams: Vec<&[String]> = texts.iter().flat_map(|words| words.windows(n)).collect();
    (!n_grams.is_empty()).then(|| distinct(&n_grams) as f64 / n_grams.len() as f64)
}

/// How many different items there are.
pub fn distinct<T: Hash + Eq>(items: &[T]) -> usize {
    items.iter().collect::<HashSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        assert_eq!(words("Don't stop-gap, 3.5!"), ["don't", "stop-gap", "3", "5"]);
        assert_eq!(
            words("  'Quoted' -- \u{c4}RGER\n\u{201c}l\u{2019}eau\u{201d} "),
            ["quoted", "\u{e4}rger", "l\u{2019}eau"]
        );
        assert!(words(" - ' ...").is_empty());
    }

    #[test]
    fn the_ratio_is_over_the_budget_and_not_over_the_text() {
        // the cat saw the dog | the cat slept: 5 types among 8 words; the first 4 words have 3, the first 6 have 4.
        let texts = ["The cat saw the dog.", "The cat slept."];
        for (budget, ratio) in [(1, 1.0), (4, 0.75), (6, 4.0 / 6.0), (8, 0.625)] {
            let expected = TypeTokenRatio { budget, words: 8, ratio: Some(ratio) };
            assert_eq!(type_token_ratio(&texts, budget), expected, "type_token_ratio: budget {budget}");
        }
        assert_eq!(type_token_ratio(&texts, 9), TypeTokenRatio { budget: 9, words: 8, ratio: None });
        assert_eq!(type_token_ratio::<&str>(&[], 1), TypeTokenRatio { budget: 1, words: 0, ratio: None });
        assert_eq!(type_token_ratio(&["a", "a", "A"], 3).ratio, Some(1.0 / 3.0));
    }

    #[test]
    fn n_grams_do_not_cross_texts() {
        let texts = ["a b a b", "b a", "c"];
        assert_eq!(distinct_n(&texts, 1), Some(3.0 / 7.0), "distinct_n: a, b, c of 7");
        assert_eq!(distinct_n(&texts, 2), Some(2.0 / 4.0), "distinct_n: ab, ba of ab, ba, ab, ba");
        assert_eq!(distinct_n(&texts, 4), Some(1.0));
        assert_eq!(distinct_n(&texts, 5), None);
    }

    #[test]
    fn distinct_counts_each_once() {
        assert_eq!((distinct(&["x", "y", "x"]), distinct::<u8>(&[])), (2, 0));
    }
}
