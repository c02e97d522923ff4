//! What the URL of Redis may say: one server, the servers of a cluster, or sentinels and the service that they watch.
//!
//! No message repeats a part of it, for it may hold passwords.

use url::Url;

/// How Redis is reached, and how many servers it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Socket,
    Single,
    Cluster,
    Sentinel,
}

const SCHEMES: [(&str, Form); 7] = [
    ("redis", Form::Single),
    ("rediss", Form::Single),
    ("redis+unix", Form::Socket),
    ("redis-cluster", Form::Cluster),
    ("rediss-cluster", Form::Cluster),
    ("redis-sentinel", Form::Sentinel),
    ("rediss-sentinel", Form::Sentinel),
];

const SERVICE: &str = "sentinelServiceName";

/// What is wrong with it.
pub(super) fn problems(text: &str) -> Vec<String> {
    let Ok(url) = Url::parse(text) else { return vec![unknown_scheme()] };
    let Some((_, form)) = SCHEMES.iter().find(|(scheme, _)| *scheme == url.scheme()) else {
        return vec![unknown_scheme()];
    };
    let mut problems = Vec::new();
    if *form != Form::Socket && url.host_str().is_none_or(str::is_empty) {
        problems.push("names no host".to_owned());
    }
    check_parameters(&url, *form, &mut problems);
    check_database(&url, *form, &mut problems);
    problems
}

fn unknown_scheme() -> String {
    format!("must be a URL that begins with {}://", SCHEMES.map(|(scheme, _)| scheme).join("://, "))
}

fn check_parameters(url: &Url, form: Form, problems: &mut Vec<String>) {
    let allowed: &[&str] = match form {
        Form::Socket | Form::Single => &[],
        Form::Cluster => &["node"],
        Form::Sentinel => &["node", SERVICE, "sentinelUsername", "sentinelPassword"],
    };
    for (name, value) in url.query_pairs() {
        if !allowed.contains(&name.as_ref()) {
            problems.push(match allowed {
                [] => "must have no parameters".to_owned(),
                allowed => format!("has a parameter that is none of {}", allowed.join(", ")),
            });
        } else if name == "node" && !is_host_and_port(&value) {
            problems.push("has a node that is not host:port".to_owned());
        }
    }
    let names_service = url.query_pairs().any(|(name, value)| name == SERVICE && !value.is_empty());
    if form == Form::Sentinel && !names_service {
        problems.push(format!("needs {SERVICE}: what the sentinels call the master"));
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.split_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn check_database(url: &Url, form: Form, problems: &mut Vec<String>) {
    let database = url.path().trim_start_matches('/');
    let is_right = match form {
        Form::Socket => true,
        Form::Single | Form::Sentinel => database.is_empty() || database.parse::<u8>().is_ok(),
        Form::Cluster => database.is_empty(),
    };
    if !is_right {
        problems.push(match form {
            Form::Cluster => "must name no database: a cluster has only one".to_owned(),
            _ => "must have nothing behind the host but the number of a database".to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_can_be_said() {
        for url in [
            "redis://127.0.0.1",
            "redis://:a-password@redis:6379/3",
            "redis+unix:///run/redis.sock",
            "redis-cluster://user:word@a:7000?node=b:7001&node=10.0.0.3:7002",
            "redis-sentinel://:word@a?sentinelServiceName=onair",
            "rediss-sentinel://a:26379/1?node=b:26379&sentinelServiceName=onair&sentinelPassword=other",
        ] {
            assert_eq!(problems(url), Vec::<String>::new(), "{url}");
        }
    }

    #[test]
    fn what_cannot_work_is_named_and_not_repeated() {
        for (url, expected) in [
            ("http://hidden", "must be a URL that begins with"),
            ("hidden", "must be a URL that begins with"),
            ("redis-sentinel://hidden", "needs sentinelServiceName"),
            ("redis-sentinel://hidden?sentinelServiceName=", "needs sentinelServiceName"),
            ("redis-cluster://hidden?node=hidden", "has a node that is not host:port"),
            ("redis-cluster://hidden?node=hidden:0x1", "has a node that is not host:port"),
            ("redis-cluster://hidden/1", "must name no database"),
            ("redis-cluster://hidden?hidden=1", "has a parameter that is none of node"),
            ("redis://hidden?node=hidden:1", "must have no parameters"),
            ("redis://hidden/hidden", "must have nothing behind the host"),
        ] {
            let found = problems(url);
            assert_eq!(found.len(), 1, "{url}: {found:?}");
            assert!(found[0].starts_with(expected), "{url}: {found:?}");
            assert!(!found[0].contains("hidden"), "{url}: {found:?}");
        }
    }
}
