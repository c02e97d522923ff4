//! What the URL of Postgres may say.
//!
//! No message repeats a part of it, for it may hold passwords. A parameter that the client does not know it would pass over, and put
//! into the log with its value: so it is refused here.

use std::net::IpAddr;

use url::Url;

/// Parameters whose value is a text of any kind.
const TEXTS: [&str; 14] = [
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "statement-cache-capacity",
];
const TLS_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// What is wrong with it.
pub(super) fn problems(text: &str) -> Vec<String> {
    let is_ours = |url: &Url| matches!(url.scheme(), "postgres" | "postgresql");
    let Some(url) = Url::parse(text).ok().filter(is_ours) else {
        return vec!["must be a URL that begins with postgres://, postgresql://".to_owned()];
    };
    url.query_pairs().filter_map(|(name, value)| problem_of(&name, &value)).collect()
}

fn problem_of(name: &str, value: &str) -> Option<String> {
    let is_option = name.starts_with("options[") && name.ends_with(']');
    let wrong = match name {
        "sslmode" | "ssl-mode" if !TLS_MODES.contains(&value) => {
            format!("has an sslmode that is none of {}", TLS_MODES.join(", "))
        }
        "port" if value.parse::<u16>().is_err() => "has a port that is no number of a port".to_owned(),
        "hostaddr" if value.parse::<IpAddr>().is_err() => "has a hostaddr that is no address".to_owned(),
        "statement-cache-capacity" if value.parse::<usize>().is_err() => {
            "has a statement-cache-capacity that is no number".to_owned()
        }
        "sslmode" | "ssl-mode" | "port" | "hostaddr" => return None,
        name if TEXTS.contains(&name) || is_option => return None,
        _ => format!("has a parameter that is none of sslmode, hostaddr, port, {}", TEXTS.join(", ")),
    };
    Some(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_understands_can_be_said() {
        for url in [
            "postgres://onair@127.0.0.1/onair",
            "postgresql://onair:word@db:5432/onair?sslmode=verify-full&sslrootcert=/etc/ca.pem",
            "postgres:///onair?host=/run/postgresql&port=5433&user=onair",
            "postgres://db/onair?options[search_path]=onair&statement-cache-capacity=200&hostaddr=10.0.0.1",
        ] {
            assert_eq!(problems(url), Vec::<String>::new(), "{url}");
        }
    }

    #[test]
    fn what_it_does_not_is_named_and_not_repeated() {
        for (url, expected) in [
            ("hidden", "must be a URL that begins with"),
            ("http://hidden", "must be a URL that begins with"),
            ("postgres://db/onair?sslpassword=hidden", "has a parameter that is none of"),
            ("postgres://db/onair?hidden=1", "has a parameter that is none of"),
            ("postgres://db/onair?sslmode=hidden", "has an sslmode that is none of"),
            ("postgres://db/onair?port=hidden", "has a port"),
            ("postgres://db/onair?hostaddr=hidden", "has a hostaddr"),
            ("postgres://db/onair?statement-cache-capacity=hidden", "has a statement-cache-capacity"),
        ] {
            let found = problems(url);
            assert_eq!(found.len(), 1, "{url}: {found:?}");
            assert!(found[0].starts_with(expected), "{url}: {found:?}");
            assert!(!found[0].contains("hidden"), "{url}: {found:?}");
        }
    }
}
