//! Pages of long lists, by position instead of by number: a page stays right while things are added and removed.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A place in one list: what the list is ordered by, of the last item that was shown.
pub trait Position: Serialize + DeserializeOwned {
    /// The list's name, so that a cursor of another list is recognised.
    const LIST: &'static str;
}

/// Where the next page begins. Callers get it as a text that they hand back and do not look into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor<P>(pub P);

/// A text that is no cursor of the list that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor that this list gave out")]
pub struct CursorError;

/// The version of the form below. Cursors do not outlive a page or two, so an unknown version is simply refused.
const VERSION: u8 = 1;

/// Longer than every cursor that is given out.
const TEXT_BYTES_MAX: usize = 512;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form<L, P> {
    v: u8,
    list: L,
    at: P,
}

impl<P: Position> fmt::Display for Cursor<P> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = Form { v: VERSION, list: P::LIST, at: &self.0 };
        let json = serde_json::to_vec(&form).map_err(|_| fmt::Error)?;
        formatter.write_str(&URL_SAFE_NO_PAD.encode(json))
    }
}

impl<P: Position> FromStr for Cursor<P> {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(CursorError);
        }
        let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError)?;
        let form: Form<String, P> = serde_json::from_slice(&json).map_err(|_| CursorError)?;
        if form.v != VERSION || form.list != P::LIST {
            return Err(CursorError);
        }
        Ok(Self(form.at))
    }
}

/// Which page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest<P> {
    /// Behind this place; from the beginning where absent.
    pub after: Option<Cursor<P>>,
    /// At most so many items.
    pub items_max: u16,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T, P> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next one begins; absent on the last.
    pub next: Option<Cursor<P>>,
}

impl<T, P> Page<T, P> {
    /// Makes a page of items of which one more than `items_max` was looked for, to learn whether more follow.
    #[must_use]
    pub fn of(mut items: Vec<T>, items_max: u16, position: impl FnOnce(&T) -> P) -> Self {
        let more_follow = items.len() > usize::from(items_max);
        items.truncate(usize::from(items_max));
        let next = items.last().filter(|_| more_follow).map(|last| Cursor(position(last)));
        Self { items, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
    struct Apples(u32);
    impl Position for Apples {
        const LIST: &'static str = "apples";
    }

    #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
    struct Pears(u32);
    impl Position for Pears {
        const LIST: &'static str = "pears";
    }

    #[test]
    fn a_cursor_survives_text_and_back() {
        let text = Cursor(Apples(7)).to_string();
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
        assert_eq!(text.parse(), Ok(Cursor(Apples(7))));
    }

    #[test]
    fn what_this_list_did_not_give_out_is_no_cursor() {
        let of_version_2 = URL_SAFE_NO_PAD.encode(r#"{"v":2,"list":"apples","at":7}"#);
        let of_another_shape = URL_SAFE_NO_PAD.encode(r#"{"v":1,"list":"apples","at":"x"}"#);
        let of_another_list = Cursor(Pears(7)).to_string();
        for text in ["", "%", "x", &of_version_2, &of_another_shape, &of_another_list, &"A".repeat(513)] {
            assert_eq!(text.parse::<Cursor<Apples>>(), Err(CursorError), "{text}");
        }
    }

    #[test]
    fn the_last_page_has_no_next() {
        let page = |found: Vec<u32>| Page::of(found, 2, |&number| Apples(number));
        assert_eq!(page(vec![1, 2, 3]), Page { items: vec![1, 2], next: Some(Cursor(Apples(2))) });
        assert_eq!(page(vec![1, 2]), Page { items: vec![1, 2], next: None });
        assert_eq!(page(vec![]), Page { items: vec![], next: None });
    }
}
