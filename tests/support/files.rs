//! Files of this repository that are not Rust, as tests look at them.

use std::{fs, path::PathBuf};

use serde_json::Value;

/// A place in this repository.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

pub fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A YAML file, merge keys carried out.
pub fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub fn json(name: &str) -> Value {
    serde_json::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The names of the files in a directory of this repository, sorted, without what they end in.
pub fn stems(directory: &str, extension: &str) -> Vec<String> {
    let entries = fs::read_dir(path(directory)).unwrap_or_else(|error| panic!("{directory}: {error}"));
    let names = entries.map(|entry| entry.expect("it can be listed").file_name().into_string().expect("a plain name"));
    let mut stems: Vec<_> = names.filter_map(|name| name.strip_suffix(extension).map(str::to_owned)).collect();
    stems.sort();
    stems
}

/// The members of a list; nothing where there is none.
pub fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The members of an object; nothing where there is none.
pub fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, member)| (name.as_str(), member))
}

/// A text that has to be there.
#[track_caller]
pub fn str_of(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}"))
}
