//! The one error of this crate: a status for programs and a sentence for people.

use std::ffi::CStr;
use std::fmt;

/// Defines [`Status`] and the name of each, which is the `code` of the Python runtime's errors.
macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $code:literal;)*) => {
        /// Kind of an error. The numbers are part of the C interface and never change; the hundreds are groups.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(i32)]
        pub enum Status {
            $($(#[$doc])* $name = $number,)*
        }

        impl Status {
            /// Every status, ascending.
            pub const ALL: &'static [Status] = &[$(Status::$name),*];

            /// The name of the status, which Python calls the `code` of an error, such as `bundle_missing`.
            pub fn name(self) -> &'static CStr {
                match self {
                    $(Status::$name => const {
                        match CStr::from_bytes_with_nul(concat!($code, "\0").as_bytes()) {
                            Ok(name) => name,
                            Err(_) => panic!("a name has no NUL"),
                        }
                    },)*
                }
            }
        }
    };
}

statuses! {
    /// An argument has a value that cannot be used.
    ArgumentInvalid = 100, "argument_invalid";
    /// The bundle has no graphs in this precision.
    PrecisionMissing = 101, "precision_missing";
    /// The model lacks this graph, so it cannot answer this question.
    GraphMissing = 102, "graph_missing";
    /// The model has no such kind of text.
    WalkTypeMissing = 103, "walk_type_missing";
    /// The caller's memory is too small for the result.
    BufferTooSmall = 104, "buffer_too_small";
    /// An image has sides, a stride or a format that cannot be read.
    ImageUnsupported = 200, "image_unsupported";
    /// An image has more pixels than the limit allows.
    ImageTooLarge = 201, "image_too_large";
    /// A box is not four finite numbers.
    BoxInvalid = 300, "box_invalid";
    /// A box's second corner lies left of or above its first.
    BoxReversed = 301, "box_reversed";
    /// A box has no width or no height.
    BoxEmpty = 302, "box_empty";
    /// A box has no part of its image inside.
    BoxOutside = 303, "box_outside";
    /// Boxes are in other units than the call says.
    BoxUnits = 304, "box_units";
    /// A mask holds other values than 0 to 1.
    MaskInvalid = 400, "mask_invalid";
    /// A mask has neither the image's size nor its grid's.
    MaskMisshaped = 401, "mask_misshaped";
    /// A mask is zero everywhere.
    MaskEmpty = 402, "mask_empty";
    /// A text is not UTF-8, or the tokenizer fails on it.
    TextInvalid = 500, "text_invalid";
    /// A text is so long that its first tokens cannot be told from its start.
    TextTooLong = 501, "text_too_long";
    /// There is no bundle at this path.
    BundleMissing = 600, "bundle_missing";
    /// A file of the bundle cannot be opened.
    BundleUnreadable = 601, "bundle_unreadable";
    /// A file of the bundle is missing.
    BundleIncomplete = 602, "bundle_incomplete";
    /// A file of the bundle is not the one that was exported.
    BundleAltered = 603, "bundle_altered";
    /// The bundle has a newer format than this version reads.
    BundleNewer = 604, "bundle_newer";
    /// The bundle has a format that this version no longer reads.
    BundleOlder = 605, "bundle_older";
    /// The bundle's manifest, graphs or tokenizer are not as specified.
    BundleInvalid = 606, "bundle_invalid";
    /// The bundle was replaced, changed or removed after it was opened.
    BundleReplaced = 607, "bundle_replaced";
    /// The device, or the library that drives it, is not on this machine.
    DeviceMissing = 700, "device_missing";
    /// The device is there and failed.
    DeviceFailed = 701, "device_failed";
    /// The device has no kernels for this precision.
    PrecisionUnsupported = 702, "precision_unsupported";
    /// The memory of the device or the machine ran out.
    OutOfMemory = 703, "out_of_memory";
    /// There is no libonnxruntime, or only one that is too old.
    RuntimeMissing = 704, "runtime_missing";
    /// The call was cancelled by another thread.
    Cancelled = 800, "cancelled";
    /// The process was forked after the library was used, and the child cannot go on with it.
    Forked = 801, "forked";
    /// A fault of this library; it is to be reported.
    Internal = 802, "internal";
}

/// An error: one sentence with the fault and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Kind of the error.
    pub status: Status,
    /// Position in the call of the image, text, box or mask at fault.
    pub index: Option<i64>,
    /// Capacity that the caller's memory needs, if it is too small.
    pub needed: Option<u64>,
    /// The fault, then the remedy.
    pub message: String,
}

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the whole call.
    pub fn new(status: Status, message: impl Into<String>) -> Error {
        // A message may repeat names out of a bundle, and ends in C at a NUL.
        let message = message.into().replace(char::is_control, " ");
        Error { status, index: None, needed: None, message }
    }

    /// The same error of one image, text, box or mask of the call.
    pub fn at(self, index: usize) -> Error {
        Error { index: i64::try_from(index).ok(), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_no_characters_that_end_it_or_steer_a_terminal() {
        let error = Error::new(Status::BundleInvalid, "a\0b\n\u{1b}[1m é图; c.");
        assert_eq!(error.message, "a b  [1m é图; c.");
    }
}
