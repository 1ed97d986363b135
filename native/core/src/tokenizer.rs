//! Texts to token ids, as the checkpoint's own tokenizer makes them.
//!
//! A `tokenizer.json` can be of the right form and still fail on a text, give other tokens from call to call, or lose
//! the text; such a file is refused. The library behind it panics on some files and texts, which are errors here.

use std::any::Any;
use std::borrow::Cow;
use std::panic::{catch_unwind, AssertUnwindSafe};

use tokenizers::{ModelWrapper, PostProcessor, TruncationDirection};

use crate::error::{Error, Result, Status};
use crate::messages::{grouped, quoted, shortened};
use crate::text::{Starts, MOST};

/// Texts that between them meet unknown characters, runs of one character and the edges of words.
const PROBES: [&str; 2] = ["a cat", "一只黑猫 🦊 naïve ½\u{301} \u{10ffff}\u{1}"];
const RUNS: [&str; 4] = ["a", "1", " ", "-"];
/// Token ids are int32. A number of ten digits may be larger; one file in millions has such a number.
const LARGEST_ID: u32 = i32::MAX as u32;
const DIGITS: usize = 10;
const TEXT_LOST: &str = "has a post-processor that does not hold the text once";

/// Tokenisation, for several threads at once.
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    starts: Starts,
    /// Tokens that are added to every text.
    added: usize,
}

/// Outcome of a tokenised text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Whether the text was too long and lost its end.
    pub truncated: bool,
    /// Tokens before the padding, the tokenizer's own special ones included.
    pub tokens: usize,
}

impl Tokenizer {
    /// Reads the content of a `tokenizer.json`, which messages call `name`. `shortest` is the fewest tokens of any kind
    /// of text. Fails if it is no tokenizer, or one that fails on a text, loses it, or is not repeatable.
    pub fn from_json(json: &[u8], name: &str, shortest: usize) -> Result<Tokenizer> {
        if std::str::from_utf8(json).is_err() {
            let message = format!("{name} cannot be read (it is not UTF-8); export the bundle again.");
            return Err(Error::new(Status::BundleUnreadable, message));
        }
        read(json, shortest)
            .map_err(|fault| Error::new(Status::BundleInvalid, format!("{name} {fault}; export the bundle again.")))
    }

    /// Tokenises a text, cut from the right so that the end token stays, and padded on the right with `pad`.
    ///
    /// Of a text of more than 8,192 characters only the start is read that settles the tokens which there is room for.
    /// Fails if the tokenizer fails on the text, or its tokens cannot be told from its start.
    ///
    /// # Panics
    ///
    /// Panics if `length` has no room for a token of the text, or is not that of `ids` and `mask`.
    pub fn encode(
        &self,
        text: &str,
        lowercase: bool,
        length: usize,
        pad: i32,
        ids: &mut [i32],
        mask: Option<&mut [i32]>,
    ) -> Result<Encoded> {
        assert!(length > self.added && ids.len() == length, "a text has room for its tokens");
        let room = length - self.added;
        let cased = if lowercase { Cow::Owned(lower(text)) } else { Cow::Borrowed(text) };
        let found = guarded(|| {
            let Some(start) = self.starts.settle(&self.tokenizer, cased, room, MOST)? else { return Ok(None) };
            let mut encoding = self.tokenizer.encode_char_offsets(&*start, false)?;
            let truncated = encoding.len() > room;
            encoding.truncate(room, 0, TruncationDirection::Right);
            Ok(Some((self.tokenizer.post_process(encoding, None, true)?, truncated)))
        });
        let found = found.map_err(|fault| {
            let message =
                format!("a text cannot be tokenised ({}); shorten it or word it in another way.", reason(&fault));
            Error::new(Status::TextInvalid, message)
        })?;
        let Some((encoding, truncated)) = found else {
            let message = format!(
                "a text has {} characters, and the first {} do not settle its first {room} tokens; shorten it, or put \
                 spaces into its long runs.",
                grouped(text.chars().count() as u64),
                grouped(MOST as u64)
            );
            return Err(Error::new(Status::TextTooLong, message));
        };
        let tokens = encoding.len();
        for (id, token) in ids.iter_mut().zip(encoding.get_ids()) {
            // No token of the vocabulary is over the largest int32.
            *id = *token as i32;
        }
        ids[tokens..].fill(pad);
        if let Some(mask) = mask {
            assert_eq!(mask.len(), length, "the mask is as long as the ids");
            mask[..tokens].fill(1);
            mask[tokens..].fill(0);
        }
        Ok(Encoded { truncated, tokens })
    }
}

/// A text in lower case, as Python's `str.lower` makes it.
///
/// The two differ where their versions of Unicode do: 55 letters were added between 14.0, Python 3.11's, and 17.0, and
/// two characters next to a sigma count otherwise, U+0295 and U+1171E.
pub fn lower(text: &str) -> String {
    text.to_lowercase()
}

/// Reads a tokenizer and makes sure that it encodes any text, the same way every time, into ids that are int32. A fault
/// completes a sentence about the file.
fn read(json: &[u8], shortest: usize) -> std::result::Result<Tokenizer, String> {
    let not_one = |fault: String| format!("is not a tokenizer ({})", reason(&fault));
    let mut tokenizer = guarded(|| {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json)?;
        // Length is handled per call, so that one tokenizer serves every kind of text and thread.
        tokenizer.with_truncation(None)?.with_padding(None);
        Ok(tokenizer)
    })
    .map_err(not_one)?;
    tokenizer.set_encode_special_tokens(false);
    if let Some(dropout) = dropout(tokenizer.get_model()) {
        return Err(format!("has dropout {dropout}, so that a text gets other tokens from call to call"));
    }
    let added = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
    if added >= shortest {
        return Err(format!("adds {added} tokens to every text, and the model reads {shortest}"));
    }
    if has_long_number(json) {
        check_ids(tokenizer.get_vocab(true).into_values())?;
    }
    check_text_is_kept(&tokenizer, added)?;
    let starts = guarded(|| Starts::new(&tokenizer)).map_err(not_one)?;
    Ok(Tokenizer { tokenizer, starts, added })
}

fn dropout(model: &ModelWrapper) -> Option<f64> {
    let ModelWrapper::BPE(model) = model else { return None };
    model.dropout.filter(|dropout| *dropout != 0.0).map(f64::from)
}

/// Makes sure that probes can be encoded, and that their tokens stand once between those that are added.
fn check_text_is_kept(tokenizer: &tokenizers::Tokenizer, added: usize) -> std::result::Result<(), String> {
    let runs = RUNS.map(|char| char.repeat(40) + "!");
    let mut ends = None;
    for text in PROBES.into_iter().chain(runs.iter().map(String::as_str)) {
        let (ids, whole) = guarded(|| {
            let encoding = tokenizer.encode_char_offsets(text, false)?;
            let ids = encoding.get_ids().to_vec();
            Ok((ids, tokenizer.post_process(encoding, None, true)?.get_ids().to_vec()))
        })
        .map_err(|fault| format!("cannot encode the text {} ({})", quoted(text), reason(&fault)))?;
        let start = (0..=added).find(|at| whole[(*at).min(whole.len())..].starts_with(&ids));
        let Some(start) = start.filter(|_| whole.len() == ids.len() + added) else { return Err(TEXT_LOST.to_owned()) };
        // A text may have no tokens, if the tokenizer knows none of its characters.
        if !ids.is_empty() && ends.is_none() {
            ends = Some([&whole[..start], &whole[start + ids.len()..]].concat());
        }
    }
    check_ids(ends.ok_or(TEXT_LOST)?)
}

fn check_ids(ids: impl IntoIterator<Item = u32>) -> std::result::Result<(), String> {
    match ids.into_iter().max() {
        Some(id) if id > LARGEST_ID => {
            Err(format!("has the token id {id}, over the largest that a model reads, {LARGEST_ID}"))
        }
        _ => Ok(()),
    }
}

/// Whether a value of a JSON text begins with ten digits.
fn has_long_number(json: &[u8]) -> bool {
    json.iter().enumerate().filter(|(_, byte)| **byte == b':').any(|(at, _)| {
        let value = json[at + 1..].trim_ascii_start();
        value.get(..DIGITS).is_some_and(|digits| digits.iter().all(u8::is_ascii_digit))
    })
}

/// Runs the library; its error or panic becomes a text.
fn guarded<T>(body: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    // A tokenizer holds nothing that a panic leaves half changed, except for caches, which it locks.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(panic_message(&*panic)),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}

/// The first sentence of the library's error, without its full stop, as part of a sentence of ours. It may repeat any
/// characters of the file.
fn reason(fault: &str) -> String {
    let first = fault.trim().lines().next().unwrap_or("it failed");
    shortened(first.split(". ").next().unwrap_or(first).trim_end_matches('.'), 200)
}

#[cfg(test)]
mod tests {
    use serde_json::{json, Value};

    use super::*;

    fn definition() -> Value {
        json!({
            "version": "1.0",
            "truncation": {"direction": "Left", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<eos>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<eos>": {"id": "<eos>", "ids": [7], "tokens": ["<eos>"]}},
            },
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1, "cat": 2, "σας": 3}, "unk_token": "<unk>"},
        })
    }

    fn tokenizer(definition: &Value) -> Result<Tokenizer> {
        Tokenizer::from_json(definition.to_string().as_bytes(), "tokenizer.json", 4)
    }

    #[test]
    fn texts_are_padded_and_cut_but_keep_their_end_token() {
        let tokenizer = tokenizer(&definition()).unwrap();
        for (text, ids, mask, truncated) in [
            ("", [7, 9, 9, 9], [1, 0, 0, 0], false),
            ("A cat", [1, 2, 7, 9], [1, 1, 1, 0], false),
            ("a a cat", [1, 1, 2, 7], [1; 4], false),
            ("a a cat cat", [1, 1, 2, 7], [1; 4], true),
            ("ΣΑΣ dog", [3, 0, 7, 9], [1, 1, 1, 0], false),
        ] {
            let (mut found, mut found_mask) = ([-1; 4], [-1; 4]);
            let encoded = tokenizer.encode(text, true, 4, 9, &mut found, Some(&mut found_mask)).unwrap();
            let tokens = mask.iter().sum::<i32>() as usize;
            assert_eq!((found, found_mask, encoded), (ids, mask, Encoded { truncated, tokens }), "{text}");
        }
    }

    #[test]
    fn a_tokenizer_that_cannot_be_relied_on_is_refused() {
        let eos = json!({"SpecialToken": {"id": "<eos>", "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        for (pointer, value, fault) in [
            ("/model", json!({}), "is not a tokenizer ("),
            ("/post_processor/single", json!([eos]), TEXT_LOST),
            ("/post_processor/single", json!([text, text]), TEXT_LOST),
            ("/post_processor/single", json!([text, eos, eos, eos, eos]), "adds 4 tokens to every text, and the"),
            ("/post_processor/special_tokens/<eos>/ids", json!([1u32 << 31]), "has the token id 2147483648"),
            ("/model/vocab/dog", json!(1u32 << 31), "has the token id 2147483648"),
            ("/model/unk_token", json!("<none>"), "cannot encode the text '一"),
        ] {
            let mut definition = definition();
            if let Some(place) = definition.pointer_mut(pointer) {
                *place = value;
            } else {
                definition["model"]["vocab"]["dog"] = value;
            }
            let error = tokenizer(&definition).err().unwrap_or_else(|| panic!("{fault} is accepted"));
            assert_eq!(error.status, Status::BundleInvalid);
            assert!(error.message.starts_with("tokenizer.json ") && error.message.contains(fault), "{error}");
            assert!(error.message.ends_with("; export the bundle again."), "{error}");
        }
    }

    #[test]
    fn bytes_that_are_no_tokenizer_are_refused() {
        let error = Tokenizer::from_json(b"\xff", "t.json", 4).err().unwrap();
        assert_eq!(error.status, Status::BundleUnreadable);
        for json in [&b""[..], b"{", b"null", "[".repeat(100_000).as_bytes()] {
            let error = Tokenizer::from_json(json, "t.json", 4).err().unwrap();
            assert!(error.message.starts_with("t.json is not a tokenizer ("), "{error}");
        }
    }

    #[test]
    fn numbers_of_ten_digits_are_found() {
        for json in ["{\"a\":1234567890}", "{\"a\": \n 9999999999}"] {
            assert!(has_long_number(json.as_bytes()));
        }
        for json in ["{\"a\":123456789}", "[1234567890]", "{\"a\":", ""] {
            assert!(!has_long_number(json.as_bytes()));
        }
    }

    #[test]
    fn a_panic_becomes_an_error() {
        assert_eq!(guarded(|| -> tokenizers::Result<()> { std::panic::panic_any("it broke") }), Err("it broke".into()));
    }
}
