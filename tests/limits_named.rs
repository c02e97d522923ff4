//! `docs/limits.md` names every limit as it is: each number, and that nothing that grows is missing.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The cells of all tables of the page.
fn rows() -> Vec<Vec<String>> {
    let page = read("docs/limits.md");
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what |"));
    rows.map(|row| row.trim_matches('|').split(" |").map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What stands between backticks.
fn spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// A number as the page writes it.
fn number(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_once(' ').unwrap_or((text, ""));
    let unit = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return None,
    };
    digits.parse::<u64>().ok().map(|number| number * unit)
}

/// The value of a constant: numbers, multiplied.
fn constant(file: &str, name: &str) -> u64 {
    let source = read(file);
    let begin = format!("const {name}: ");
    let declared =
        source.lines().find_map(|line| line.split_once(&begin)).unwrap_or_else(|| panic!("{file}: no {name}"));
    let value = declared.1.split_once(" = ").expect("it has a value").1.trim_end_matches(';');
    value
        .split(" * ")
        .map(|part| part.replace('_', "").parse::<u64>().unwrap_or_else(|_| panic!("{name}: {part}")))
        .product()
}

/// The defaults of the settings, from the commented example, which a test of its own holds against the source.
fn settings() -> BTreeMap<String, String> {
    let mut section = String::new();
    let mut found = BTreeMap::new();
    for line in read("onair.example.toml").lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((name, value)) = line.strip_prefix('#').and_then(|rest| rest.split_once(" = ")) {
            found.insert(format!("{section}.{name}"), value.to_owned());
        }
    }
    found
}

#[test]
fn every_number_is_that_of_the_source() {
    let settings = settings();
    let (mut constants, mut defaults) = (0, 0);
    for row in rows() {
        let Some(value) = row.get(2).and_then(|cell| number(cell)) else { continue };
        match spans(&row[1])[..] {
            [file, name] if file.starts_with("src/") => {
                assert_eq!(constant(file, name), value, "{file} {name}");
                constants += 1;
            }
            [setting] => {
                let default = settings.get(setting).unwrap_or_else(|| panic!("there is no setting {setting}"));
                assert_eq!(*default, value.to_string(), "{setting}");
                defaults += 1;
            }
            _ => panic!("what is the limit of {}?", row[0]),
        }
    }
    println!("{constants} constants and {defaults} defaults are as the page says");
    assert!(constants > 20 && defaults > 12, "the page was not understood");
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("it is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// Whether a line declares a member that can grow, or makes something with a capacity.
fn grows(line: &str) -> bool {
    const KINDS: [&str; 9] = [
        "HashMap<",
        "BTreeMap<",
        "HashSet<",
        "TrieMapSync<",
        "TreeMapSync<",
        "VecDeque<",
        "Cache<",
        "Mutex<Vec<",
        "Fleet>",
    ];
    const MAKERS: [&str; 3] = ["Cache::builder()", "mpsc::channel(", "Semaphore::new("];
    let member = line.strip_prefix("    ").filter(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase()));
    let is_member = member.is_some_and(|rest| {
        rest.split_once(": ").is_some_and(|(name, kind)| {
            let name = name.trim_start_matches("pub(super) ").trim_start_matches("pub ");
            let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            is_name && !kind.contains('&') && KINDS.iter().any(|word| kind.contains(word))
        })
    });
    is_member || MAKERS.iter().any(|word| line.contains(word))
}

#[test]
fn nothing_that_grows_is_missing() {
    let page = read("docs/limits.md");
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut counted = 0;
    for file in files {
        let name = file.strip_prefix(root()).expect("below the root").display().to_string();
        let text = fs::read_to_string(&file).expect("it can be read");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        assert!(!code.contains("unbounded"), "{name}: something has no bound");
        for line in code.lines().filter(|line| grows(line)) {
            // What `onair dev` keeps is not kept by a service.
            let is_named = page.contains(&format!("`{name}`")) || name.starts_with("src/dev/");
            assert!(is_named, "docs/limits.md does not tell of {name}: {}", line.trim());
            counted += 1;
        }
    }
    println!("{counted} lines of the source make or hold something that grows; all their files are on the page");
    assert!(counted > 20, "the source was not understood");
}
