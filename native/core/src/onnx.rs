//! The weights of an ONNX model that lie in other files: their names, types, shapes and places, read without onnx.
//!
//! A model is a message of protocol buffers: a sequence of fields, each a key (number · 8 + wire type) and a value
//! (<https://protobuf.dev/programming-guides/encoding/>). The numbers of the fields are those of `onnx.proto`.

const GRAPH: u64 = 7;
const INITIALIZER: u64 = 5;
/// Fields of a tensor.
const DIMS: u64 = 1;
const DATA_TYPE: u64 = 2;
const NAME: u64 = 8;
const EXTERNAL_DATA: u64 = 13;
/// Fields of an entry of external data.
const KEY: u64 = 1;
const VALUE: u64 = 2;

/// An initialiser whose values lie in another file.
#[derive(Clone, Debug, PartialEq)]
pub struct External {
    /// Its name in the graph.
    pub name: String,
    /// Its type, a number of ONNX.
    pub dtype: i32,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Name of the file, beside the model.
    pub location: String,
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes; `None` if the model does not say.
    pub length: Option<u64>,
}

/// The external initialisers of a serialised model, in its order; an error completes a sentence about the file.
pub fn externals(model: &[u8]) -> Result<Vec<External>, String> {
    let mut found = Vec::new();
    for field in Fields(model) {
        let (GRAPH, Content::Bytes(graph)) = field? else { continue };
        for field in Fields(graph) {
            let (INITIALIZER, Content::Bytes(tensor)) = field? else { continue };
            found.extend(external(tensor)?);
        }
    }
    Ok(found)
}

fn external(tensor: &[u8]) -> Result<Option<External>, String> {
    let (mut name, mut dtype, mut shape, mut entries) = (String::new(), 0, Vec::new(), Vec::new());
    for field in Fields(tensor) {
        match field? {
            (DIMS, Content::Number(size)) => shape.push(size as i64),
            (DIMS, Content::Bytes(mut sizes)) => {
                while !sizes.is_empty() {
                    shape.push(varint(&mut sizes)? as i64);
                }
            }
            (DATA_TYPE, Content::Number(number)) => dtype = number as i32,
            (NAME, Content::Bytes(bytes)) => name = text(bytes)?,
            (EXTERNAL_DATA, Content::Bytes(entry)) => entries.push(key_and_value(entry)?),
            _ => {}
        }
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let value = |key: &str| entries.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let number = |key: &str| {
        let parsed = value(key).map(str::parse::<u64>).transpose();
        parsed.map_err(|_| format!("the weights {name:?} have no number as their {key}"))
    };
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    let location = value("location").ok_or_else(|| format!("the weights {name:?} name no file"))?.to_owned();
    Ok(Some(External { dtype, shape, location, offset, length, name }))
}

fn key_and_value(entry: &[u8]) -> Result<(String, String), String> {
    let (mut key, mut value) = (String::new(), String::new());
    for field in Fields(entry) {
        match field? {
            (KEY, Content::Bytes(bytes)) => key = text(bytes)?,
            (VALUE, Content::Bytes(bytes)) => value = text(bytes)?,
            _ => {}
        }
    }
    Ok((key, value))
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a name is not UTF-8".into())
}

enum Content<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of a message, each its number and its content.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Content<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Result<(u64, Content<'a>), String> {
        let key = varint(&mut self.0)?;
        let content = match key & 7 {
            0 => Content::Number(varint(&mut self.0)?),
            1 => self.take(8).map(|_| Content::Fixed)?,
            2 => {
                let size = varint(&mut self.0)?;
                Content::Bytes(self.take(size)?)
            }
            5 => self.take(4).map(|_| Content::Fixed)?,
            wire => return Err(format!("wire type {wire}")),
        };
        Ok((key >> 3, content))
    }

    fn take(&mut self, size: u64) -> Result<&'a [u8], String> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let (taken, rest) = self.0.split_at_checked(size).ok_or("a field ends past the message")?;
        self.0 = rest;
        Ok(taken)
    }
}

/// Takes a number off the front: seven bits a byte, the lowest first.
fn varint(message: &mut &[u8]) -> Result<u64, String> {
    let mut number = 0;
    for (index, byte) in message.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f).checked_shl(7 * index as u32).unwrap_or(0);
        if *byte < 0x80 {
            *message = &message[index + 1..];
            return Ok(number);
        }
    }
    Err("a number that does not end".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }

    fn entry(key: &str, value: &str) -> Vec<u8> {
        field(EXTERNAL_DATA as u8, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
    }

    fn model(tensor: &[u8]) -> Vec<u8> {
        field(GRAPH as u8, &field(INITIALIZER as u8, tensor))
    }

    #[test]
    fn external_weights_are_found() {
        let external = External {
            name: "w".into(),
            dtype: 1,
            shape: vec![2, 300],
            location: "w.bin".into(),
            offset: 8,
            length: Some(2400),
        };
        let rest = [
            &[0x10, 1][..],
            &field(8, b"w"),
            &entry("location", "w.bin"),
            &entry("offset", "8"),
            &entry("length", "2400"),
        ]
        .concat();
        let plain = [&[0x08, 2, 0x08, 0xac, 2][..], &rest].concat();
        let packed = [field(1, &[2, 0xac, 2]), rest.clone()].concat();
        assert_eq!(externals(&model(&plain)).unwrap(), std::slice::from_ref(&external));
        assert_eq!(externals(&model(&packed)).unwrap(), [external]);
        assert_eq!(externals(&model(&field(8, b"inline"))).unwrap(), []);
    }

    #[test]
    fn damaged_models_are_refused() {
        let no_number = model(&[entry("location", "x"), entry("offset", "-1")].concat());
        for message in [&[0x3a][..], &[0x3a, 9, 1], &[0x3b, 0], &[0xff; 11], &model(&entry("offset", "1")), &no_number]
        {
            assert!(externals(message).is_err(), "{message:?}");
        }
    }
}
