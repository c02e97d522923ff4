//! As much of Prometheus' query language as tests need: which series a query is about.

use std::collections::BTreeSet;

/// One selector of a query, such as `onair_streams{state="live"}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// The metric.
    pub metric: String,
    /// The labels that it is chosen by.
    pub labels: Vec<String>,
    /// All of it, as it stands.
    pub text: String,
}

/// The selectors of our metrics, of `up` and of `ALERTS` in a query.
pub fn selectors(query: &str) -> BTreeSet<Selector> {
    let mut found = BTreeSet::new();
    let mut rest = query;
    while let Some(start) = rest.find(|letter: char| letter.is_ascii_alphabetic() || letter == '"') {
        rest = &rest[start..];
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted.split_once('"').expect("quotes are closed").1;
            continue;
        }
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        rest = behind;
        if word.starts_with("onair_") || ["up", "ALERTS"].contains(&word) {
            let matchers = if behind.starts_with('{') { &behind[..=closing_brace(behind)] } else { "" };
            rest = &behind[matchers.len()..];
            found.insert(Selector {
                metric: word.to_owned(),
                labels: labels(matchers),
                text: format!("{word}{matchers}"),
            });
        }
    }
    found
}

/// The place of the brace that closes the first one; braces between quotes do not count.
fn closing_brace(text: &str) -> usize {
    let mut is_quoted = false;
    let closes = |(_, letter): &(usize, char)| {
        is_quoted ^= *letter == '"';
        !is_quoted && *letter == '}'
    };
    text.char_indices().find(closes).expect("braces are closed").0
}

/// What stands before the operators between braces.
fn labels(matchers: &str) -> Vec<String> {
    let mut is_quoted = false;
    let outside: String = matchers
        .chars()
        .filter(|letter| {
            is_quoted ^= *letter == '"';
            !is_quoted && *letter != '"'
        })
        .collect();
    let inside = outside.trim_matches(['{', '}']);
    let names = inside.split(',').map(|matcher| matcher.trim_end_matches(['=', '~', '!']).trim());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}
