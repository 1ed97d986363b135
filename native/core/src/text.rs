//! Starts of long texts that settle the first tokens, so that the work does not grow with the text.
//!
//! The ids of a start are the first ids of the whole text if the start ends where a token of the whole text ends, and if
//! nothing before that place depends on what follows it. Two kinds of tokenizer are known, with a proof for each.
//!
//! **Words.** CLIP's tokenizer finds words by a regular expression and drops everything between them. No word holds
//! white space, and no step of the cleaning looks across it. So every start that ends at white space is one.
//!
//! **Pieces.** Gemma's tokenizer merges pairs over the whole text. In each step it takes the pair that comes first in
//! its list, and of those the leftmost. Merges on two sides of a place that no token crosses do not affect each other.
//! So any start that ends at such a place has the first ids of the whole text. No token covers more than M characters,
//! where M is the length of the longest in the vocabulary. Of any M starts, each one character longer than the one
//! before, at least one ends at such a place. The first ids that all of the M share are those of the text.

use std::borrow::Cow;
use std::sync::OnceLock;

use serde_json::Value;
use tokenizers::{AddedToken, ModelWrapper, NormalizedString, Normalizer, Result, Tokenizer};

/// Characters of the longest start. Texts up to this length are tokenised whole; it takes at most some 50 ms.
pub const MOST: usize = 8192;
/// Characters for each token of the first start that is tried. English has four to five, Chinese one.
const FIRST: usize = 8;
/// The longest token with which M starts take less than a second.
const LONGEST: usize = 256;
const SPACES: [char; 4] = [' ', '\t', '\r', '\n'];

/// Starts of texts for one tokenizer.
pub struct Starts {
    splits_words: bool,
    merges_everything: bool,
    /// Characters of the longest token, once a long text asked for it: to find it takes 50 ms.
    longest: OnceLock<usize>,
}

impl Starts {
    /// Takes a tokenizer that neither truncates nor pads.
    pub fn new(tokenizer: &Tokenizer) -> Result<Starts> {
        let added: Vec<AddedToken> = tokenizer.get_added_tokens_decoder().into_values().collect();
        let plain = added.iter().all(|token| !(token.lstrip || token.rstrip || token.single_word));
        let normalizer = steps(&serde_json::to_value(tokenizer.get_normalizer())?);
        let pre_tokenizer = steps(&serde_json::to_value(tokenizer.get_pre_tokenizer())?);
        let finds_words = pre_tokenizer
            .first()
            .is_some_and(|step| step["type"] == "Split" && step["behavior"] == "Removed" && step["invert"] == true);
        let holds_space = |token: &AddedToken| token.content.contains(SPACES);
        Ok(Starts {
            splits_words: finds_words && plain && !added.iter().any(holds_space),
            merges_everything: plain
                && merges_everything(tokenizer.get_model())
                && normalizer.iter().all(keeps_characters)
                && pre_tokenizer.iter().all(splits_at_a_character),
            longest: OnceLock::new(),
        })
    }

    /// A start of `text` that has the same first `count` ids, and more ids than these; none if no start of at most
    /// `most` characters is known to settle the ids. A text of up to `most` characters is returned whole.
    pub fn settle<'a>(
        &self,
        tokenizer: &Tokenizer,
        text: Cow<'a, str>,
        count: usize,
        most: usize,
    ) -> Result<Option<Cow<'a, str>>> {
        if is_within(&text, most) {
            return Ok(Some(text));
        }
        // Only that there is white space counts, not how much.
        let text = if self.splits_words { Cow::Owned(with_single_spaces(&text)) } else { text };
        if is_within(&text, most) {
            return Ok(Some(text));
        }
        let mut size = FIRST.saturating_mul(count).min(most);
        loop {
            let ends = self.ends_of_tokens(tokenizer, &text, size)?;
            if !ends.is_empty() && agree(tokenizer, &text, &ends, count)? {
                return Ok(Some(Cow::Owned(text[..ends[0]].to_owned())));
            }
            if size == most {
                return Ok(None);
            }
            size = (2 * size).min(most);
        }
    }

    /// Ends of starts of at most `size` characters, the longest first. One or more is the end of a token of `text`.
    fn ends_of_tokens(&self, tokenizer: &Tokenizer, text: &str, size: usize) -> Result<Vec<usize>> {
        if self.splits_words {
            let end = text[..byte_of(text, size + 1)].rfind(' ');
            return Ok(end.filter(|end| *end > 0).into_iter().collect());
        }
        let longest = self.longest(tokenizer);
        if longest == 0 || size < longest {
            return Ok(Vec::new());
        }
        let (start, end) = (byte_of(text, size - longest), byte_of(text, size));
        let window = &text[start..end];
        if normalized(tokenizer, window)?.chars().count() != longest {
            // A character that becomes two, such as İ, may have the end of a token inside.
            return Ok(Vec::new());
        }
        Ok(window.char_indices().rev().map(|(at, char)| start + at + char.len_utf8()).collect())
    }

    /// Number M of characters of the longest token; zero if the tokenizer is not of the kind of pieces.
    fn longest(&self, tokenizer: &Tokenizer) -> usize {
        *self.longest.get_or_init(|| {
            if !self.merges_everything {
                return 0;
            }
            let longest = tokenizer.get_vocab(true).keys().map(|token| token.chars().count()).max();
            longest.filter(|longest| *longest <= LONGEST).unwrap_or(0)
        })
    }
}

/// A text as the normalizer changes it.
fn normalized(tokenizer: &Tokenizer, text: &str) -> Result<String> {
    let mut normalized = NormalizedString::from(text);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut normalized)?;
    }
    Ok(normalized.get().to_owned())
}

/// Whether the longest start has more than `count` ids, and all have the same first ones.
fn agree(tokenizer: &Tokenizer, text: &str, ends: &[usize], count: usize) -> Result<bool> {
    let ids =
        |end: usize| Ok::<_, tokenizers::Error>(tokenizer.encode_char_offsets(&text[..end], false)?.get_ids().to_vec());
    let longest = ids(ends[0])?;
    if longest.len() <= count {
        return Ok(false);
    }
    for end in &ends[1..] {
        if ids(*end)?.get(..count) != Some(&longest[..count]) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_within(text: &str, most: usize) -> bool {
    text.len() <= most || text.chars().nth(most).is_none()
}

/// Position in bytes of a character; the end if there is none.
fn byte_of(text: &str, char: usize) -> usize {
    text.char_indices().nth(char).map_or(text.len(), |(at, _)| at)
}

fn with_single_spaces(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut after_space = false;
    for char in text.chars() {
        let space = SPACES.contains(&char);
        if !space {
            result.push(char);
        } else if !after_space {
            result.push(' ');
        }
        after_space = space;
    }
    result
}

/// The steps of a normalizer or pre-tokenizer, as `tokenizer.json` has them; empty if there is none.
fn steps(component: &Value) -> Vec<Value> {
    if component.is_null() {
        return Vec::new();
    }
    let parts = ["normalizers", "pretokenizers"].iter().find_map(|name| component[name].as_array());
    parts.filter(|parts| !parts.is_empty()).cloned().unwrap_or_else(|| vec![component.clone()])
}

fn merges_everything(model: &ModelWrapper) -> bool {
    let ModelWrapper::BPE(model) = model else { return false };
    let empty = |affix: &Option<String>| affix.as_deref().unwrap_or_default().is_empty();
    model.dropout.is_none_or(|dropout| dropout == 0.0)
        && !model.ignore_merges
        && empty(&model.continuing_subword_prefix)
        && empty(&model.end_of_word_suffix)
}

/// Whether a step of a normalizer changes each character by itself.
fn keeps_characters(step: &Value) -> bool {
    match step["type"].as_str() {
        Some("Replace") => is_character(&step["pattern"]["String"]) && is_character(&step["content"]),
        kind => kind == Some("Lowercase"),
    }
}

/// Whether a step of a pre-tokenizer splits at single characters of one kind.
fn splits_at_a_character(step: &Value) -> bool {
    step["type"] == "Split" && is_character(&step["pattern"]["String"]) && step["invert"] == false
}

fn is_character(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.chars().count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_counted_once() {
        assert_eq!(with_single_spaces(" a \t\r\n b\u{a0}\u{a0}c  "), " a b\u{a0}\u{a0}c ");
    }

    #[test]
    fn positions_count_characters() {
        assert_eq!([0, 1, 2, 3, 9].map(|at| byte_of("aé🦊", at)), [0, 1, 3, 7, 7]);
        assert!(is_within("éé", 2) && !is_within("ééa", 2));
    }

    #[test]
    fn steps_of_a_sequence_are_its_parts() {
        let step = serde_json::json!({"type": "Lowercase"});
        assert_eq!(steps(&Value::Null), Vec::<Value>::new());
        assert_eq!(steps(&step), vec![step.clone()]);
        assert_eq!(steps(&serde_json::json!({"type": "Sequence", "normalizers": [step]})), vec![step]);
    }
}
