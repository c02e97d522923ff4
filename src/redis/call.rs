//! The keys and arguments of a script's call, in one piece of memory.
//!
//! fred keeps a handle of each text that it sends, and has to make one of a text with memory of its own. An admission has
//! seventeen: making and forgetting them one by one costs several times what putting them one behind the other does.

use std::{
    fmt::{Display, Write as _},
    ops::Range,
};

use bytes::Bytes;

/// How much room an admission needs.
const ROOM_BYTES: usize = 1_024;
const ROOM_TEXTS: usize = 18;
/// How much room the count of joined calls needs.
const ROOM_FOR_COUNT_BYTES: usize = 4;

/// Keys and arguments on their way into a [`Call`].
pub(super) struct CallBuilder {
    text: String,
    ends: Vec<usize>,
    keys: usize,
}

impl CallBuilder {
    /// Adds a key, made of parts. Keys come before arguments.
    pub(super) fn key(&mut self, parts: &[&str]) {
        debug_assert_eq!(self.keys, self.ends.len(), "keys come before arguments");
        for part in parts {
            self.text.push_str(part);
        }
        self.ends.push(self.text.len());
        self.keys += 1;
    }

    /// Adds an argument.
    pub(super) fn argument(&mut self, value: impl Display) {
        write!(self.text, "{value}").expect("a string takes everything");
        self.ends.push(self.text.len());
    }

    pub(super) fn build(self) -> Call {
        Call { text: self.text.into(), ends: self.ends, keys: self.keys }
    }
}

/// Keys and arguments as they are sent, once or again.
pub(super) struct Call {
    text: Bytes,
    /// Where each ends, keys first.
    ends: Vec<usize>,
    keys: usize,
}

impl Call {
    pub(super) fn builder() -> CallBuilder {
        CallBuilder { text: String::with_capacity(ROOM_BYTES), ends: Vec::with_capacity(ROOM_TEXTS), keys: 0 }
    }

    /// Of texts that are there already.
    pub(super) fn of(keys: &[String], arguments: &[String]) -> Self {
        let mut call = Self::builder();
        for key in keys {
            call.key(&[key]);
        }
        for argument in arguments {
            call.argument(argument);
        }
        call.build()
    }

    /// What several calls of one script are given, as `lua/each.lua` takes it apart again.
    pub(super) fn joined(calls: &[Self]) -> Self {
        let sum = |of: fn(&Self) -> usize| calls.iter().map(of).sum::<usize>();
        let mut joined = CallBuilder {
            text: String::with_capacity(sum(|call| call.text.len()) + ROOM_FOR_COUNT_BYTES),
            ends: Vec::with_capacity(sum(|call| call.ends.len()) + 1),
            keys: 0,
        };
        for call in calls {
            call.texts().take(call.keys).for_each(|key| joined.key(&[key]));
        }
        for call in calls {
            call.texts().skip(call.keys).for_each(|argument| joined.argument(argument));
        }
        joined.argument(calls.len());
        joined.build()
    }

    /// The first key, which says what server is asked.
    pub(super) fn first_key(&self) -> &str {
        self.texts().take(self.keys).next().unwrap_or_default()
    }

    pub(super) fn keys(&self) -> Vec<Bytes> {
        self.places().take(self.keys).map(|place| self.text.slice(place)).collect()
    }

    pub(super) fn arguments(&self) -> Vec<Bytes> {
        self.places().skip(self.keys).map(|place| self.text.slice(place)).collect()
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        let text = std::str::from_utf8(&self.text).expect("it was made of texts");
        self.places().map(move |place| &text[place])
    }

    fn places(&self) -> impl Iterator<Item = Range<usize>> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, &end)| begin..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_arguments_come_out_as_they_went_in() {
        let mut call = Call::builder();
        call.key(&["a", "b"]);
        call.key(&["c"]);
        call.argument("");
        call.argument(7);
        call.argument("\u{e4}");
        let call = call.build();
        assert_eq!(call.first_key(), "ab");
        assert_eq!(
            (call.keys(), call.arguments()),
            (vec!["ab".into(), "c".into()], vec!["".into(), "7".into(), "\u{e4}".into()])
        );
        let joined = Call::joined(&[call, Call::of(&["d".into(), "e".into()], &["f".into(), "g".into(), "h".into()])]);
        assert_eq!(joined.keys(), ["ab", "c", "d", "e"]);
        assert_eq!(joined.arguments(), ["", "7", "\u{e4}", "f", "g", "h", "2"]);
        let bare = Call::of(&[], &["x".to_owned()]);
        assert_eq!((bare.first_key(), bare.keys(), bare.arguments()), ("", vec![], vec![Bytes::from("x")]));
    }
}
