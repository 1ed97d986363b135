//! What is read from a bundle and from a caller: manifests, tokenizers and texts.

use std::borrow::Cow;
use std::sync::OnceLock;

use fgclip_rt_core::error::Status;
use fgclip_rt_core::manifest::Manifest;
use fgclip_rt_core::text::Starts;
use fgclip_rt_core::tokenizer::Tokenizer;

use crate::{check_sentence, repository, Numbers};

/// A manifest is refused with a sentence, or can be relied on.
pub fn manifest(data: &[u8]) {
    match Manifest::decode(data, "manifest.json") {
        Ok(manifest) => {
            let precisions = manifest.precisions();
            assert!(!precisions.is_empty());
            for graph in manifest.graphs.keys() {
                assert!(precisions.iter().all(|precision| manifest.graph(graph, precision).is_some()));
            }
            let image = &manifest.image;
            let bytes = (image.max_num_patches() as usize).checked_mul(image.patch_bytes());
            assert!(bytes.is_some_and(|bytes| bytes > 0));
            assert!(manifest.text.walk_types.keys().any(|name| name == "short"));
        }
        Err(error) => {
            let known = [Status::BundleInvalid, Status::BundleNewer, Status::BundleOlder];
            assert!(known.contains(&error.status), "{error:?}");
            check_sentence(&error);
        }
    }
}

/// A tokenizer is refused with a sentence, or gives any text the same ids each time.
pub fn tokenizer(data: &[u8]) {
    const LENGTH: usize = 8;
    match Tokenizer::from_json(data, "tokenizer.json", LENGTH) {
        Ok(tokenizer) => {
            for text in ["", "a cat", "naïve 一只黑猫 🦊", "\0\u{200b}", &"ab ".repeat(50)] {
                let encode = || {
                    let (mut ids, mut mask) = ([-1; LENGTH], [-1; LENGTH]);
                    let encoded = tokenizer.encode(text, true, LENGTH, 0, &mut ids, Some(&mut mask));
                    encoded.map(|encoded| (encoded, ids, mask))
                };
                match encode() {
                    Ok((encoded, ids, mask)) => {
                        assert!(encoded.tokens <= LENGTH && ids.iter().all(|id| *id >= 0));
                        assert!(mask.iter().enumerate().all(|(at, one)| *one == i32::from(at < encoded.tokens)));
                        assert_eq!(encode(), Ok((encoded, ids, mask)), "other ids from call to call");
                    }
                    Err(error) => assert!(matches!(error.status, Status::TextInvalid | Status::TextTooLong)),
                }
            }
        }
        Err(error) => {
            assert!(matches!(error.status, Status::BundleInvalid | Status::BundleUnreadable), "{error:?}");
            check_sentence(&error);
        }
    }
}

struct Known {
    ours: Tokenizer,
    plain: tokenizers::Tokenizer,
    starts: Starts,
}

fn known() -> &'static [Known; 2] {
    static KNOWN: OnceLock<[Known; 2]> = OnceLock::new();
    KNOWN.get_or_init(|| {
        ["fgclip1", "fgclip2"].map(|name| {
            let path = repository(&format!("tests/goldens/{name}/checkpoint/tokenizer.json"));
            let json = std::fs::read(path).expect("the goldens are there");
            let mut plain = tokenizers::Tokenizer::from_bytes(&json).expect("a golden is sound");
            plain.with_truncation(None).expect("a golden is sound").with_padding(None);
            plain.set_encode_special_tokens(false);
            let starts = Starts::new(&plain).expect("a golden is sound");
            Known { ours: Tokenizer::from_json(&json, "tokenizer.json", 4).expect("a golden is sound"), plain, starts }
        })
    })
}

/// Any text has ids, and the start that settles them has the whole text's.
pub fn text(data: &[u8]) {
    let mut numbers = Numbers(data);
    let Known { ours, plain, starts } = &known()[numbers.below(2) as usize];
    let (lowercase, length) = (numbers.below(2) == 1, 4 + numbers.below(60) as usize);
    let (count, most) = (1 + numbers.below(8) as usize, 1 + numbers.below(300) as usize);
    let text = String::from_utf8_lossy(numbers.0);
    let (mut ids, mut mask) = (vec![-1; length], vec![-1; length]);
    let encoded = ours.encode(&text, lowercase, length, 0, &mut ids, Some(&mut mask)).expect("a golden takes any text");
    assert!((1..=length).contains(&encoded.tokens) && ids.iter().all(|id| *id >= 0));
    assert_eq!(mask.iter().sum::<i32>() as usize, encoded.tokens);
    let of = |text: &str| plain.encode_char_offsets(text, false).expect("a golden takes any text").get_ids().to_vec();
    let start = starts.settle(plain, Cow::Borrowed(&*text), count, most).expect("a golden takes any text");
    if let Some(start) = start.filter(|start| start.len() < text.len()) {
        let (found, whole) = (of(&start), of(&text));
        let same = found.iter().zip(&whole).take(count).filter(|(one, other)| one == other).count();
        assert_eq!(same, count.min(whole.len()), "a start of {} bytes has other ids", start.len());
    }
}
