//! Strict decoding of JSON values: an unknown key, a missing key or a value of another type is an error with its place.
//!
//! `serde`'s derived decoders would accept an array for a struct, a missing key for an `Option`, and unknown keys in
//! tagged unions. The Python runtime refuses all three, and both must accept and refuse the same.

use serde_json::{Map, Value};

use crate::messages::quoted;

/// Characters of a name that a message repeats.
const MOST_CHARACTERS: usize = 80;

/// A fault and its place, such as ``Expected `int`, got `str` - at `$.score` ``.
pub type Decoded<T> = Result<T, String>;

/// A value and the way to it from the document's root.
pub struct Node<'a> {
    value: &'a Value,
    path: String,
}

/// Types that can be decoded.
pub trait Decode: Sized {
    /// Decodes a value.
    fn decode(node: &Node) -> Decoded<Self>;
}

impl<'a> Node<'a> {
    /// The root of a document.
    pub fn root(value: &'a Value) -> Node<'a> {
        Node { value, path: "$".into() }
    }

    /// The value itself.
    pub fn value(&self) -> &'a Value {
        self.value
    }

    /// The error that a value has another type.
    pub fn expected(&self, wanted: &str) -> String {
        let kind = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(number) if number.is_f64() => "float",
            Value::Number(_) => "int",
            Value::String(_) => "str",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        self.fault(&format!("Expected `{wanted}`, got `{kind}`"))
    }

    /// An error at this place.
    pub fn fault(&self, message: &str) -> String {
        if self.path == "$" {
            message.into()
        } else {
            format!("{message} - at `{}`", self.path)
        }
    }

    /// The value as an object with exactly the given keys; `optional` ones may lack.
    pub fn fields(&self, keys: &[&str]) -> Decoded<Fields<'a, '_>> {
        let object = self.object()?;
        if let Some(unknown) = object.keys().find(|key| !keys.contains(&key.as_str())) {
            return Err(self.fault(&format!("Object contains unknown field {}", named(unknown))));
        }
        if let Some(missing) = keys.iter().find(|key| !object.contains_key(**key)) {
            return Err(self.fault(&format!("Object missing required field `{missing}`")));
        }
        Ok(Fields { object, node: self })
    }

    /// The value as an object with any keys.
    pub fn object(&self) -> Decoded<&'a Map<String, Value>> {
        self.value.as_object().ok_or_else(|| self.expected("object"))
    }

    fn child(&self, value: &'a Value, step: &str) -> Node<'a> {
        Node { value, path: format!("{}{step}", self.path) }
    }
}

/// The keys of an object that [`Node::fields`] has checked.
pub struct Fields<'a, 'n> {
    object: &'a Map<String, Value>,
    node: &'n Node<'a>,
}

impl Fields<'_, '_> {
    /// The value of one of the checked keys.
    pub fn get<T: Decode>(&self, key: &str) -> Decoded<T> {
        self.with(key, T::decode)
    }

    /// The value of one of the checked keys, decoded by a function.
    pub fn with<T>(&self, key: &str, decode: impl Fn(&Node) -> Decoded<T>) -> Decoded<T> {
        decode(&self.node.child(&self.object[key], &format!(".{key}")))
    }
}

/// Declares structs that decode themselves from an object with exactly their fields. A field may name a function that
/// decodes it.
macro_rules! strict {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $kind:ty $(= $with:expr)?,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $kind,)*
        }

        impl $crate::decode::Decode for $name {
            fn decode(node: &$crate::decode::Node) -> $crate::decode::Decoded<Self> {
                let fields = node.fields(&[$(stringify!($field)),*])?;
                Ok($name { $($field: $crate::decode::strict!(@ fields, $field $(, $with)?),)* })
            }
        }
    )*};
    (@ $fields:ident, $field:ident) => { $fields.get(stringify!($field))? };
    (@ $fields:ident, $field:ident, $with:expr) => { $fields.with(stringify!($field), $with)? };
}
pub(crate) use strict;

impl Decode for String {
    fn decode(node: &Node) -> Decoded<Self> {
        node.value.as_str().map(str::to_owned).ok_or_else(|| node.expected("str"))
    }
}

impl Decode for bool {
    fn decode(node: &Node) -> Decoded<Self> {
        node.value.as_bool().ok_or_else(|| node.expected("bool"))
    }
}

impl Decode for f64 {
    fn decode(node: &Node) -> Decoded<Self> {
        node.value.as_f64().ok_or_else(|| node.expected("float"))
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(node: &Node) -> Decoded<Self> {
        if node.value.is_null() {
            Ok(None)
        } else {
            T::decode(node).map(Some)
        }
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(node: &Node) -> Decoded<Self> {
        list_of(T::decode)(node)
    }
}

/// A dictionary in the order of its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Ordered<T>(Vec<(String, T)>);

impl<T> Ordered<T> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&T> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Whether there is such a key.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// The values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    /// The keys with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

impl<T: Decode> Decode for Ordered<T> {
    fn decode(node: &Node) -> Decoded<Self> {
        let object = node.object()?;
        let entries = object.iter().map(|(key, value)| Ok((key.clone(), T::decode(&node.child(value, "[...]"))?)));
        entries.collect::<Decoded<_>>().map(Ordered)
    }
}

/// A decoder of a whole number from `least` to `most`.
pub fn whole(least: u64, most: u64) -> impl Fn(&Node) -> Decoded<u64> {
    move |node| {
        let number = match node.value {
            Value::Number(number) if !number.is_f64() => number,
            _ => return Err(node.expected("int")),
        };
        match number.as_u64() {
            Some(value) if value > most => Err(node.fault(&format!("Expected `int` <= {most}"))),
            Some(value) if value >= least => Ok(value),
            _ => Err(node.fault(&format!("Expected `int` >= {least}"))),
        }
    }
}

/// A decoder of a number from `least` to `most`.
pub fn real(least: f64, most: f64) -> impl Fn(&Node) -> Decoded<f64> {
    move |node| {
        let value = f64::decode(node)?;
        if value < least {
            return Err(node.fault(&format!("Expected `float` >= {least:?}")));
        }
        if value > most {
            return Err(node.fault(&format!("Expected `float` <= {most:?}")));
        }
        Ok(value)
    }
}

/// A decoder of one of some words.
pub fn one_of<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&Node) -> Decoded<T> {
    move |node| {
        let word = String::decode(node)?;
        let found = words.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
        found.ok_or_else(|| node.fault(&format!("Invalid enum value {}", named(&word))))
    }
}

/// A decoder of a list.
pub fn list_of<T>(decode: impl Fn(&Node) -> Decoded<T>) -> impl Fn(&Node) -> Decoded<Vec<T>> {
    move |node| {
        let items = node.value.as_array().ok_or_else(|| node.expected("array"))?;
        items.iter().enumerate().map(|(at, item)| decode(&node.child(item, &format!("[{at}]")))).collect()
    }
}

/// A name of the document for a message, in quotes, shortened and with escapes: it may hold any characters.
fn named(name: &str) -> String {
    quoted(&name.chars().take(MOST_CHARACTERS).collect::<String>())
}

/// A decoder of what may be null.
pub fn optional<T>(decode: impl Fn(&Node) -> Decoded<T>) -> impl Fn(&Node) -> Decoded<Option<T>> {
    move |node| if node.value.is_null() { Ok(None) } else { decode(node).map(Some) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    strict! {
        /// One field.
        pub struct One {
            /// A number.
            size: bool,
        }
    }

    #[test]
    fn a_key_that_cannot_be_printed_is_told_with_escapes() {
        let document = json!({"size": true, "a\0\u{1b}[1m": 1});
        let fault = One::decode(&Node::root(&document)).unwrap_err();
        assert_eq!(fault, "Object contains unknown field 'a\\u{0}\\u{1b}[1m'");
    }

    #[test]
    fn a_long_key_is_cut() {
        let document = json!({"size": true, "x".repeat(10_000): 1});
        assert!(One::decode(&Node::root(&document)).unwrap_err().len() < 200);
        let fault = one_of(&[("a", 1)])(&Node::root(&json!("é".repeat(10_000)))).unwrap_err();
        assert_eq!(fault, format!("Invalid enum value '{}'", "é".repeat(80)));
    }
}
