//! What the documents say of the program exists: its commands and flags, endpoints with methods and parameters, settings and
//! variables, codes and other words. That files and headings exist is in `docs.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use onair::{
    admission::{Allowance, RefusalCode},
    config::Config,
    domain::AuditAction,
};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The Markdown files at the top and below `docs`, and the commented example of the configuration.
fn documents() -> Vec<PathBuf> {
    let entries = |directory: &Path| -> Vec<PathBuf> {
        fs::read_dir(directory).expect("it is there").map(|entry| entry.expect("it can be listed").path()).collect()
    };
    let mut found: Vec<PathBuf> = entries(root()).into_iter().filter(|path| path.is_file()).collect();
    let mut directories = vec![root().join("docs")];
    while let Some(directory) = directories.pop() {
        let (below, files): (Vec<_>, Vec<_>) = entries(&directory).into_iter().partition(|path| path.is_dir());
        directories.extend(below);
        found.extend(files);
    }
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found.push(root().join("onair.example.toml"));
    found
}

/// A document, taken apart.
struct Code {
    /// What stands between single backticks.
    spans: Vec<String>,
    /// Lines of fenced blocks, continued ones joined.
    lines: Vec<String>,
    /// Those of them that a shell reads.
    commands: Vec<String>,
}

impl Code {
    fn of(document: &str) -> Self {
        let (mut prose, mut block, mut shell) = (String::new(), String::new(), String::new());
        let mut language = None;
        for line in document.lines() {
            if let Some(named) = line.trim_start().strip_prefix("```") {
                language = if language.is_none() { Some(named) } else { None };
                continue;
            }
            let texts: &mut [&mut String] = match language {
                None => &mut [&mut prose],
                Some("sh") => &mut [&mut block, &mut shell],
                Some(_) => &mut [&mut block],
            };
            for text in texts {
                text.push_str(line);
                text.push('\n');
            }
        }
        let of_paragraph = |paragraph: &str| -> Vec<String> {
            paragraph.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")).collect()
        };
        Self {
            spans: prose.split("\n\n").flat_map(of_paragraph).collect(),
            lines: joined(&block),
            commands: joined(&shell),
        }
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        self.spans.iter().chain(&self.lines).map(String::as_str)
    }
}

fn joined(block: &str) -> Vec<String> {
    block.replace("\\\n", " ").lines().map(str::to_owned).collect()
}

/// What the program says of itself.
struct Commands(BTreeMap<Vec<String>, String>);

impl Commands {
    /// Asks the program, and its commands, for help.
    fn ask() -> Self {
        let mut helps = BTreeMap::new();
        let mut waiting = vec![Vec::<String>::new()];
        while let Some(words) = waiting.pop() {
            let output = Command::new(env!("CARGO_BIN_EXE_onair")).args(&words).arg("--help").output();
            let help = String::from_utf8(output.expect("it runs").stdout).expect("help is text");
            waiting.extend(subcommands(&help).map(|name| [&words[..], &[name.to_owned()]].concat()));
            helps.insert(words, help);
        }
        Self(helps)
    }

    /// Why a command line names something that the program does not know, if it does.
    fn unknown_in(&self, line: &str) -> Option<String> {
        let line = line.split(" #").next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_program = |word: &&str| *word == "onair" || word.ends_with("/onair");
        // Elsewhere `onair` is the name of a container.
        let is_container = |at: usize| words[at] == "onair" && words[..at].contains(&"docker");
        let at = (0..words.len()).find(|&at| is_program(&words[at]) && !is_container(at))?;
        let is_operator = |word: &&&str| !["|", ">", ">>", "&&", ";", "&"].contains(*word);
        let arguments: Vec<&str> = words[at + 1..].iter().take_while(is_operator).copied().collect();
        let mut command = Vec::new();
        while let Some(name) = arguments.get(command.len()) {
            let help = &self.0[&command];
            let is_name = name.starts_with(|letter: char| letter.is_ascii_lowercase());
            if subcommands(help).next().is_none() || !is_name {
                break;
            }
            if !subcommands(help).any(|known| known == *name) {
                return Some(format!("onair {}: there is no such command", arguments[..=command.len()].join(" ")));
            }
            command.push((*name).to_owned());
        }
        let help = &self.0[&command];
        let flags =
            arguments.iter().filter(|word| word.starts_with("--")).map(|word| word.split('=').next().unwrap_or(word));
        let is_known = |flag: &str| help.split([' ', ',', '\n']).any(|word| word == flag);
        flags
            .into_iter()
            .find(|flag| !is_known(flag))
            .map(|flag| format!("onair {} {flag}: there is no such flag", command.join(" ")))
    }
}

/// The names below `Commands:` in a help.
fn subcommands(help: &str) -> impl Iterator<Item = &str> {
    let listed = help.split_once("\nCommands:\n").map_or("", |(_, rest)| rest.split("\n\n").next().unwrap_or_default());
    listed.lines().filter_map(|line| line.split_whitespace().next())
}

/// The endpoints of the `OpenAPI` document.
struct Endpoints(Value);

impl Endpoints {
    /// Why a text names an endpoint that is not there, if it does: `GET /v1/streams/{id}?limit=10`, alone or inside a URL.
    fn unknown_in(&self, text: &str) -> Option<String> {
        text.match_indices("/v1/").filter(|(at, _)| text[..*at].ends_with(is_before_path) || *at == 0).find_map(
            |(at, _)| {
                let address =
                    text[at..].split([' ', '"', '\'', '`', ')', '|', ',', ';', '>']).next().unwrap_or_default();
                let (path, query) = address.split_once('?').unwrap_or((address, ""));
                let path = path.trim_end_matches(['.', ':']);
                let method = text[..at]
                    .trim_end()
                    .rsplit(' ')
                    .next()
                    .filter(|word| word.chars().all(|c| c.is_ascii_uppercase()));
                let problem = self.problem_of(method.filter(|word| !word.is_empty()), path, query)?;
                Some(format!("{address}: {problem}"))
            },
        )
    }

    fn problem_of(&self, method: Option<&str>, path: &str, query: &str) -> Option<String> {
        let Some(item) = self.item(path) else { return Some("there is no such endpoint".to_owned()) };
        if let Some(method) = method
            && item.get(method.to_lowercase()).is_none()
        {
            return Some(format!("there is no {method} of it"));
        }
        let parameters: Vec<&str> = item
            .as_object()?
            .values()
            .filter_map(|operation| operation["parameters"].as_array())
            .flatten()
            .filter(|parameter| parameter["in"] == "query")
            .filter_map(|parameter| parameter["name"].as_str())
            .collect();
        let names = query.split('&').filter_map(|pair| pair.split('=').next()).filter(|name| !name.is_empty());
        names.into_iter().find(|name| !parameters.contains(name)).map(|name| format!("there is no parameter {name}"))
    }

    fn item(&self, path: &str) -> Option<&Value> {
        let segments: Vec<&str> = path.split('/').collect();
        let paths = self.0["paths"].as_object().expect("a document has paths");
        let fits = |template: &str| {
            let parts: Vec<&str> = template.split('/').collect();
            parts.len() == segments.len()
                && parts
                    .iter()
                    .zip(&segments)
                    .all(|(part, segment)| part == segment || part.starts_with('{') && !segment.is_empty())
        };
        // A literal path before a template that would fit as well.
        paths.get(path).or_else(|| paths.iter().find(|(template, _)| fits(template)).map(|(_, item)| item))
    }
}

/// What stands before a path: the end of a host, a variable, a quote, a blank.
fn is_before_path(letter: char) -> bool {
    letter.is_alphanumeric() || " `\"'}/(".contains(letter)
}

/// Names and texts of the files in which k6 and its helpers are programmed.
fn load_scenarios() -> impl Iterator<Item = String> {
    let directories = ["load", "load/lib"].map(|name| fs::read_dir(root().join(name)).expect("it is there"));
    let files = directories.into_iter().flatten().map(|entry| entry.expect("it can be listed").path());
    files
        .filter(|path| path.is_file())
        .map(|path| format!("{} {}", path.display(), fs::read_to_string(&path).expect("a program is text")))
}

/// Variables that no setting has: of the commands, of tests, of the scenarios and of the composition.
fn other_variables() -> BTreeSet<String> {
    let other = [
        "ONAIR_NODES",
        "ONAIR_CONFIG",
        "ONAIR_DATA_DIR",
        "ONAIR_API_URL",
        "ONAIR_API_SECRET",
        "ONAIR_API_SECRET_FILE",
        "ONAIR_WRITE_DOCS",
        "ONAIR_TEST_BACKLOG_ENTRIES",
        "ONAIR_FAILOVER_SECONDS",
    ];
    let elsewhere = load_scenarios().chain([read("docker-compose.yml")]);
    other.into_iter().map(str::to_owned).chain(elsewhere.flat_map(|text| variables(&text))).collect()
}

/// Every `ONAIR_...` of a text. What ends in `_` is the beginning of several.
fn variables(text: &str) -> Vec<String> {
    let is_part = |letter: char| letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_';
    let words = text.split(|letter: char| !is_part(letter));
    words.filter(|word| word.starts_with("ONAIR_") && !word.ends_with('_')).map(str::to_owned).collect()
}

fn unknown_variable(text: &str) -> Option<String> {
    let other = other_variables();
    let is_known = |name: &String| {
        Config::fields().any(|field| field.variable == name || field.file_variable().as_ref() == Some(name))
            || other.contains(name)
    };
    variables(text).into_iter().find(|name| !is_known(name)).map(|name| format!("{name}: there is no such variable"))
}

/// Why a span such as `server.drain_ms` names no setting, if it does not.
fn unknown_setting(span: &str) -> Option<String> {
    let (section, name) = span.split(" =").next()?.split_once('.')?;
    let is_section = Config::fields().any(|field| field.section == section);
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let is_field = Config::fields()
        .any(|field| field.section == section && (field.name == name || format!("{}_file", field.name) == name));
    (is_section && is_name && !is_field).then(|| format!("{span}: there is no such setting"))
}

/// Words of Postgres and k6, and fields of log lines.
const OTHER_WORDS: [&str; 5] = ["pg_dump", "max_connections", "dropped_iterations", "silence_ms", "duration_us"];

/// Every word with an underscore that means something here: codes, fields, reasons, metrics, rooms, columns, files of the composition.
fn known_words() -> BTreeSet<String> {
    let document = serde_json::to_string(&onair::http::document()).expect("a document is JSON");
    let files = [
        "docs/errors.md",
        "docs/metrics.md",
        "src/lib.rs",
        "src/nodes/wiring.rs",
        "docker-compose.yml",
        "grafana/prometheus/alerts.yml",
    ];
    let migrations = fs::read_dir(root().join("migrations")).expect("there are migrations");
    let migrations = migrations
        .map(|entry| fs::read_to_string(entry.expect("it can be listed").path()).expect("a migration is text"));
    let texts = files.into_iter().map(read).chain(migrations).chain(load_scenarios()).chain([document]);
    let is_part = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
    let mut words: BTreeSet<String> =
        texts.flat_map(|text| text.split(|letter| !is_part(letter)).map(str::to_owned).collect::<Vec<_>>()).collect();
    words.extend(OTHER_WORDS.map(str::to_owned));
    words.extend(Config::fields().map(|field| field.name.to_owned()));
    words.extend(Allowance::ALL.iter().map(|word| word.as_str().to_owned()));
    words.extend(RefusalCode::ALL.iter().map(|word| word.as_str().to_owned()));
    words.extend(AuditAction::ALL.iter().map(|word| word.as_str().to_owned()));
    words
}

fn unknown_word(span: &str, known: &BTreeSet<String>) -> Option<String> {
    let is_word = span.contains('_')
        && span.starts_with(|letter: char| letter.is_ascii_lowercase())
        && !span.ends_with('_')
        && span.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    (is_word && !known.contains(span)).then(|| format!("{span}: nothing is called so"))
}

struct Checks {
    commands: Commands,
    endpoints: Endpoints,
    words: BTreeSet<String>,
}

impl Checks {
    fn new() -> Self {
        let document = serde_json::to_value(onair::http::document()).expect("a document is JSON");
        Self { commands: Commands::ask(), endpoints: Endpoints(document), words: known_words() }
    }

    fn problems_of(&self, text: &str) -> Vec<String> {
        let code = Code::of(text);
        let commands = code.spans.iter().chain(&code.commands).filter_map(|line| self.commands.unknown_in(line));
        let endpoints = code.all().filter_map(|line| self.endpoints.unknown_in(line));
        let settings = code.spans.iter().filter_map(|span| unknown_setting(span));
        let words = code.spans.iter().filter_map(|span| unknown_word(span, &self.words));
        commands.chain(endpoints).chain(settings).chain(words).chain(unknown_variable(text)).collect()
    }
}

#[test]
fn everything_that_the_documents_say_of_the_program_exists() {
    let checks = Checks::new();
    let problems: Vec<String> = documents()
        .iter()
        .flat_map(|document| {
            let found = checks.problems_of(&fs::read_to_string(document).expect("it can be read"));
            found.into_iter().map(|problem| format!("{}: {problem}", document.display())).collect::<Vec<_>>()
        })
        .collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn what_does_not_exist_is_found() {
    let checks = Checks::new();
    let good = "`onair keys create --path live/ada` `GET /v1/streams/{id}` `server.drain_ms` `ONAIR_SERVER_LISTEN` `key_in_use`\n\n\
        ```sh\nonair mediamtx-config edge-1 \\\n  --no-hooks > file   # --anything\ncurl $ONAIR/v1/streams?state=ended\n\
        docker compose logs onair | grep --count x\n```\n";
    assert_eq!(checks.problems_of(good), Vec::<String>::new());
    let bad = [
        "`onair keys destroy`",
        "`onair server`",
        "`onair serve --port 80`",
        "`GET /v1/stream`",
        "`DELETE /v1/streams`",
        "`GET /v1/streams?order=name`",
        "`server.port`",
        "ONAIR_SERVER_PORT",
        "`key_in_usage`",
        "```sh\ntarget/debug/onair keys \\\n  list --all\n```",
        "```sh\ncurl http://127.0.0.1:8080/v1/keys\n```",
    ];
    for text in bad {
        assert_eq!(checks.problems_of(text).len(), 1, "{text}");
    }
}
