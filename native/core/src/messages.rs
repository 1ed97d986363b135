//! Pieces of messages: names in quotes, numbers in groups of three digits.

use std::fmt::Display;

/// Whether a name can stand in a message as it is: no control characters, no marks that turn or hide text.
pub fn printable(name: &str) -> bool {
    name.chars().all(is_printable)
}

/// A name in quotes, with escapes for what cannot be printed, because a manifest may hold any characters.
pub fn quoted(name: &str) -> String {
    let quote = if name.contains('\'') && !name.contains('"') { '"' } else { '\'' };
    let mut result = String::from(quote);
    for char in name.chars() {
        match char {
            '\\' => result.push_str("\\\\"),
            _ if char == quote => result.extend(['\\', char]),
            _ if is_printable(char) => result.push(char),
            _ => result.extend(char.escape_default()),
        }
    }
    result.push(quote);
    result
}

/// A number with commas, such as 1,234,567.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut result = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            result.push(',');
        }
        result.push(digit);
    }
    result
}

/// Items with commas between them.
pub fn joined<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

/// A text for a message: the first `most` characters, without what cannot be printed.
pub fn shortened(text: &str, most: usize) -> String {
    text.chars().map(|char| if is_printable(char) { char } else { ' ' }).take(most).collect()
}

fn is_printable(char: char) -> bool {
    match char {
        ' '..='~' => true,
        '\0'..='\x7f' => false,
        // Behind a letter, only what cannot be printed is escaped.
        _ => !String::from_iter(['a', char]).escape_debug().any(|escaped| escaped == '\\'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_printed_are_told_apart() {
        for name in ["a b", "é", "e\u{301}", "图", "🦊", "'\"\\"] {
            assert!(printable(name), "{name}");
        }
        for name in ["\n", "\u{7f}", "\u{a0}", "\u{200b}", "\u{202e}", "\u{e000}", "\u{2028}", "\u{ad}"] {
            assert!(!printable(name), "{name:?}");
        }
    }

    #[test]
    fn quotes_are_those_of_python() {
        assert_eq!(quoted("a"), "'a'");
        assert_eq!(quoted("it's"), "\"it's\"");
        assert_eq!(quoted("'\""), "'\\'\"'");
        assert_eq!(quoted("a\\\n"), "'a\\\\\\n'");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 12, 999, 1000, 1234567].map(grouped), ["0", "12", "999", "1,000", "1,234,567"]);
    }
}
