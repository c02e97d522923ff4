//! What the documents name exists: linked files and headings, paths of this tree, targets of `make`.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Markdown files at the top and below `docs`.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root().join("docs")];
    let mut entries: Vec<PathBuf> = entries_of(root()).into_iter().filter(|path| path.is_file()).collect();
    while let Some(directory) = directories.pop() {
        entries.extend(entries_of(&directory));
        for path in entries.drain(..) {
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

fn entries_of(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("the directory is there");
    entries.map(|entry| entry.expect("it can be listed").path()).collect()
}

/// The text outside fenced blocks.
fn prose(document: &str) -> String {
    let mut is_fenced = false;
    let is_prose = |line: &&str| {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        !is_fenced && !is_fence
    };
    document.lines().filter(is_prose).collect::<Vec<_>>().join("\n")
}

/// What stands between single backticks.
fn code_spans(prose: &str) -> Vec<&str> {
    prose.split("\n\n").flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2)).collect()
}

/// The addresses in `[text](address)` and `[text]: address`.
fn links(prose: &str) -> Vec<&str> {
    let end = |rest: &'static [char]| move |text| str::split(text, rest).next().unwrap_or_default();
    let inline = prose.split("](").skip(1).map(end(&[')', ' ']));
    let reference = prose
        .lines()
        .filter(|line| line.starts_with('['))
        .filter_map(|line| line.split_once("]: "))
        .map(|(_, address)| end(&[' '])(address));
    inline.chain(reference).collect()
}

/// The names by which a document's headings can be linked, as GitHub makes them.
fn anchors(document: &str) -> Vec<String> {
    let headings = prose(document);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        text.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect()
    };
    headings.map(anchor).collect()
}

/// Why a link leads nowhere, if it does.
fn broken_link(document: &Path, text: &str, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let target = document.parent().expect("it lies somewhere").join(file);
    if !target.exists() {
        return Some(format!("{link}: there is no such file"));
    }
    let anchor = anchor?;
    let anchors =
        if file.is_empty() { anchors(text) } else { anchors(&fs::read_to_string(&target).unwrap_or_default()) };
    (!anchors.iter().any(|known| known == anchor)).then(|| format!("{link}: there is no such heading"))
}

/// Why a code span names something that is not there, if it does.
fn broken_name(span: &str, makefile: &str) -> Option<String> {
    if let Some(words) = span.strip_prefix("make ") {
        let targets = words.split_whitespace().take_while(|word| !word.contains('='));
        let missing = targets.filter(|target| !makefile.lines().any(|line| line.starts_with(&format!("{target}:"))));
        return missing.map(|target| format!("make {target}: there is no such target")).next();
    }
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "._-/".contains(letter);
    let (top, below) = span.split_once('/')?;
    // Only a path of this tree: the first part is one of ours and not made by a build, without blanks and placeholders.
    let is_ours = !["", "target"].contains(&top) && span.chars().all(is_plain) && root().join(top).is_dir();
    (is_ours && !below.is_empty() && !root().join(span).exists()).then(|| format!("{span}: there is no such file"))
}

fn problems_of(document: &Path, text: &str) -> Vec<String> {
    let makefile = fs::read_to_string(root().join("Makefile")).expect("the Makefile");
    let prose = prose(text);
    let links = links(&prose).into_iter().filter_map(|link| broken_link(document, text, link));
    let names = code_spans(&prose).into_iter().filter_map(|span| broken_name(span, &makefile));
    links.chain(names).map(|problem| format!("{}: {problem}", document.display())).collect()
}

#[test]
fn everything_that_the_documents_name_exists() {
    let documents = documents();
    assert!(documents.contains(&root().join("README.md")), "{documents:?}");
    let problems: Vec<String> = documents
        .iter()
        .flat_map(|document| problems_of(document, &fs::read_to_string(document).expect("it can be read")))
        .collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The tests that `docs/failures.md` names: `binary::test` or `binary::file::test`.
fn named_tests(document: &str) -> Vec<(&str, &str)> {
    let rows = document.lines().filter(|line| line.starts_with('|'));
    let spans = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    spans.filter_map(|span| span.split_once("::")).collect()
}

/// Why a test cannot be the one that shows a failure, if it cannot.
fn missing_test(binary: &str, name: &str) -> Option<String> {
    let tests = root().join("tests");
    // A binary of several files has a test in `main.rs` or in one that its name begins with.
    let (file, name) = name.rsplit_once("::").unwrap_or(("main", name));
    let text = [tests.join(format!("{binary}.rs")), tests.join(binary).join(format!("{file}.rs"))]
        .into_iter()
        .find_map(|file| fs::read_to_string(file).ok());
    let is_there = text.is_some_and(|text| {
        text.split("#[tokio::test")
            .skip(1)
            .any(|test| test.split("fn ").nth(1).is_some_and(|rest| rest.starts_with(&format!("{name}("))))
    });
    (!is_there).then(|| format!("{binary}::{file}::{name}: there is no such test"))
}

/// The rows of its tables that name no test.
fn rows_without_a_test(document: &str) -> Vec<&str> {
    let rows = document.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    rows.filter(|row| !row.contains("| failure |") && named_tests(row).is_empty()).collect()
}

#[test]
fn every_failure_in_the_documents_is_shown_by_a_test_that_exists() {
    let document = fs::read_to_string(root().join("docs/failures.md")).expect("the failures are written down");
    let missing: Vec<String> =
        named_tests(&document).into_iter().filter_map(|(binary, name)| missing_test(binary, name)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    let untested = rows_without_a_test(&document);
    assert!(untested.is_empty(), "{untested:#?}");

    // And a row that names no test, or one that is not there, would be found.
    let bad = "| failure | test |\n|---|---|\n| a | none |\n| b | `docs::no_such_test` |\n";
    assert_eq!(rows_without_a_test(bad), ["| a | none |"]);
    assert_eq!(named_tests(bad), [("docs", "no_such_test")]);
    assert!(missing_test("docs", "no_such_test").is_some());
}

#[test]
fn what_is_missing_is_found() {
    let text = "\
# A heading, or `two`\n\n\
[good](Makefile) [good](#a-heading-or-two) [good](https://example.org/missing) `src/lib.rs` `make dev` `a/b`\n\n\
[bad](missing.md) [bad](#missing) `src/missing.rs` `make missing`\n\n\
```\n[not looked at](missing)\n```\n\n\
[bad]: docs/missing.md\n";
    let document = root().join("document.md");
    let beside = |problem: &str| format!("{}: {problem}", document.display());
    assert_eq!(
        problems_of(&document, text),
        [
            beside("missing.md: there is no such file"),
            beside("#missing: there is no such heading"),
            beside("docs/missing.md: there is no such file"),
            beside("src/missing.rs: there is no such file"),
            beside("make missing: there is no such target"),
        ]
    );
}
