//! Pages of what is on air, ready-made: rendered, compressed and named once, and sent to all who ask for the same.
//!
//! Invariants:
//! - A page is kept only as long as it is exact: any change of what is on air, of what the pollers saw or of the fleet makes
//!   all kept pages worthless. What is exact was decided before a page is looked for here.
//! - `as_of` of a page that is not stale is at most a second old.
//! - At most [`KEPT_MAX`] pages of together about [`KEPT_BYTES_MAX`] are kept: each is as large as what callers put into it.

use std::{
    collections::HashMap,
    io::Write as _,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest as _, Sha256};

use super::{
    list_items::{ListItems, Setting},
    streams_dto::StreamList,
};
use crate::{
    nodes::Fleet,
    streams::{ListFilter, View},
};

/// The most pages that are kept at once.
const KEPT_MAX: usize = 256;

/// How large they may be together, before compression. A page of a thousand plain streams has about a megabyte.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A body that is smaller is sent as it is: compressing it would save no packet.
const COMPRESSED_BYTES_MIN: usize = 1_024;

/// Pages that were asked for since the last change.
#[derive(Default)]
pub struct ListPages {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    of: Option<Moment>,
    /// What pages of the moment's setting are put together from.
    items: Arc<ListItems>,
    pages: HashMap<ListFilter, Arc<OnceLock<Page>>>,
    bytes: usize,
}

impl Kept {
    fn forget(&mut self) {
        self.pages.clear();
        self.bytes = 0;
    }

    fn begin(&mut self, moment: Moment) {
        self.forget();
        if self.of.as_ref().is_none_or(|of| of.setting != moment.setting) {
            self.items = Arc::default();
        }
        self.of = Some(moment);
    }
}

/// What all kept pages are of.
#[derive(Clone, PartialEq)]
struct Moment {
    version: u64,
    second: i64,
    setting: Setting,
}

impl Moment {
    fn of(view: &View, fleet: &Arc<Fleet>) -> Self {
        Self {
            version: view.snapshot.version,
            second: view.snapshot.as_of.as_ms().div_euclid(1_000),
            setting: Setting::of(view, fleet),
        }
    }
}

/// One page, ready to be sent.
pub struct Page {
    body: Bytes,
    compressed: OnceLock<Bytes>,
    etag: HeaderValue,
}

/// A page that was found or made.
pub struct Rendered(Arc<OnceLock<Page>>);

impl ListPages {
    /// The page that `filter` asks for, made by `render` if nobody asked for it since the last change.
    pub fn get(
        &self,
        view: &View,
        fleet: &Arc<Fleet>,
        filter: &ListFilter,
        render: impl FnOnce(&View, &Fleet, &ListFilter, &ListItems) -> StreamList,
    ) -> Rendered {
        let (page, items) = self.place(Moment::of(view, fleet), filter);
        let mut made_bytes = 0;
        page.get_or_init(|| {
            let page = Page::new(&render(view, fleet, filter, &items));
            made_bytes = page.body.len();
            page
        });
        self.count(made_bytes);
        Rendered(page)
    }

    /// A page was made. Those who have one already keep it, whatever is forgotten here.
    fn count(&self, made_bytes: usize) {
        if made_bytes > 0 {
            let mut kept = self.kept();
            kept.bytes += made_bytes;
            if kept.bytes > KEPT_BYTES_MAX {
                kept.forget();
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, moment: Moment, filter: &ListFilter) -> (Arc<OnceLock<Page>>, Arc<ListItems>) {
        let mut kept = self.kept();
        if kept.of.as_ref() != Some(&moment) || kept.pages.len() >= KEPT_MAX {
            kept.begin(moment);
        }
        let page = Arc::clone(kept.pages.entry(filter.clone()).or_default());
        (page, Arc::clone(&kept.items))
    }
}

impl Page {
    fn new(list: &StreamList) -> Self {
        let body = serde_json::to_vec(list).expect("a list has no map keys other than texts");
        // Named by what is listed, and not by when: every replica gives the same name to the same.
        let StreamList { items, total, stale, message, next_cursor, as_of: _ } = list;
        let around = serde_json::to_vec(&(total, stale, message, next_cursor)).expect("a tuple is a list");
        let of_items = items.iter().fold(Sha256::new(), |digest, item| digest.chain_update(item.digest()));
        let digest = of_items.chain_update(around).finalize();
        let name = u128::from_be_bytes(digest[..16].try_into().expect("a SHA-256 has 32 bytes"));
        let etag = HeaderValue::try_from(format!("W/\"{name:032x}\"")).expect("hexadecimal digits are a header value");
        Self { body: body.into(), compressed: OnceLock::new(), etag }
    }

    fn compressed(&self) -> &Bytes {
        self.compressed.get_or_init(|| {
            let mut encoder = GzEncoder::new(Vec::with_capacity(self.body.len() / 4), Compression::fast());
            encoder.write_all(&self.body).expect("a vector takes everything");
            encoder.finish().expect("a vector takes everything").into()
        })
    }
}

impl Rendered {
    /// The answer to a caller: nothing where it has the same already, compressed where it takes that.
    pub fn answer(&self, headers: &HeaderMap) -> Response {
        let page = self.0.get().expect("made before it was handed out");
        let mut response = if names(headers, &page.etag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else if page.body.len() >= COMPRESSED_BYTES_MIN && takes_gzip(headers) {
            let mut response = Response::new(Body::from(page.compressed().clone()));
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
        } else {
            Response::new(Body::from(page.body.clone()))
        };
        let own = response.headers_mut();
        if !page.body.is_empty() {
            own.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        own.insert(header::ETAG, page.etag.clone());
        own.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        // A cache between us and the caller has to ask each time: the list is exact.
        own.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }
}

fn names(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let opaque = |text: &str| text.trim().trim_start_matches("W/").to_owned();
    let own = opaque(etag.to_str().unwrap_or_default());
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|sent| sent.trim() == "*" || opaque(sent) == own)
}

/// True where gzip is named and not ruled out by `q=0`.
fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
            is_gzip && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            list_items::ListItem,
            streams_dto::{Seen, StreamSummary},
        },
        *,
    };
    use crate::domain::{Stream, Timestamp};

    fn with(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn pages_that_grow_too_large_together_are_forgotten() {
        let moment = Moment { version: 1, second: 1, setting: Setting::empty() };
        let all = |items_max| ListFilter {
            state: None,
            node: None,
            broadcaster_id: None,
            path: None,
            items_max,
            after: None,
        };
        let (pages, kept) = (ListPages::default(), |pages: &ListPages| pages.kept().pages.len());
        for number in 1..=u16::try_from(KEPT_MAX).unwrap() {
            pages.place(moment.clone(), &all(number));
        }
        assert_eq!(kept(&pages), KEPT_MAX);
        pages.place(moment.clone(), &all(999));
        assert_eq!(kept(&pages), 1, "one more begins anew");
        pages.count(KEPT_BYTES_MAX);
        assert_eq!(kept(&pages), 1);
        pages.count(1);
        assert_eq!((kept(&pages), pages.kept().bytes), (0, 0));
    }

    #[test]
    fn items_outlast_what_changes_on_air_and_nothing_else() {
        let moment = Moment { version: 1, second: 1, setting: Setting::empty() };
        let filter =
            ListFilter { state: None, node: None, broadcaster_id: None, path: None, items_max: 1, after: None };
        let pages = ListPages::default();
        let mut last = pages.place(moment.clone(), &filter);
        let mut keeps = |moment: &Moment| {
            let before = std::mem::replace(&mut last, pages.place(moment.clone(), &filter));
            (Arc::ptr_eq(&before.0, &last.0), Arc::ptr_eq(&before.1, &last.1))
        };
        assert_eq!(keeps(&moment), (true, true));
        assert_eq!(keeps(&Moment { version: 2, ..moment.clone() }), (false, true));
        // Another fleet, though it is equal.
        assert_eq!(keeps(&Moment { setting: Setting::empty(), ..moment }), (false, false));
    }

    #[test]
    fn a_page_is_named_by_what_is_listed_and_not_by_when() {
        let mut stream = Stream::admitted("live/ada", Timestamp::from_ms(1));
        let mut name = |title: &str, total, as_of_ms| {
            stream.info.title = Some(title.to_owned());
            let seen = Seen { stream: &stream, progress: None, stale: false };
            let items = vec![ListItem::new(&StreamSummary::new(&seen, &Fleet::default()))];
            let as_of = Timestamp::from_ms(as_of_ms);
            let (message, next_cursor) = (None, None);
            Page::new(&StreamList { items, total: Some(total), stale: false, message, next_cursor, as_of }).etag
        };
        let named = name("Ada", 1, 1_000);
        assert_eq!(named, name("Ada", 1, 2_500));
        assert_ne!(named, name("Ada", 2, 1_000));
        assert_ne!(named, name("Ada live", 1, 1_000));
    }

    #[test]
    fn gzip_is_sent_to_those_who_take_it() {
        for takes in ["gzip", "br, GZIP;q=0.5", "deflate, gzip, br"] {
            assert!(takes_gzip(&with(header::ACCEPT_ENCODING, takes)), "{takes}");
        }
        for refuses in ["", "br", "gzip;q=0", "identity"] {
            assert!(!takes_gzip(&with(header::ACCEPT_ENCODING, refuses)), "{refuses}");
        }
    }

    #[test]
    fn a_list_that_the_caller_has_is_recognised_by_its_name() {
        let etag = HeaderValue::from_static("W/\"ab\"");
        for same in ["W/\"ab\"", "\"ab\"", "\"x\", W/\"ab\"", "*"] {
            assert!(names(&with(header::IF_NONE_MATCH, same), &etag), "{same}");
        }
        for other in ["\"abc\"", "W/\"a\"", ""] {
            assert!(!names(&with(header::IF_NONE_MATCH, other), &etag), "{other}");
        }
    }
}
