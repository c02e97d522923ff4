//! The document as a judge of answers.

use std::collections::HashMap;

use jsonschema::Validator;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::Answer;

const PROBLEM: &str = "application/problem+json";

/// What may be answered, by method, address, status and media type.
pub struct Contract {
    operations: Vec<Operation>,
    /// For answers to what is no operation.
    problem: Validator,
}

struct Operation {
    method: String,
    template: String,
    responses: HashMap<u16, HashMap<String, Validator>>,
}

impl Contract {
    pub fn new(document: &Value) -> Self {
        let mut operations = Vec::new();
        for (template, item) in document["paths"].as_object().expect("there are paths") {
            for (method, operation) in item.as_object().expect("a path has operations") {
                let responses = operation["responses"].as_object().expect("an operation has responses");
                let responses = responses
                    .iter()
                    .map(|(status, response)| (status.parse().expect("a status"), media_types(document, response)))
                    .collect();
                let method = method.to_uppercase();
                operations.push(Operation { method, template: template.clone(), responses });
            }
        }
        let problem = expand(document, &json!({"$ref": "#/components/schemas/Problem"}), Extent::Open);
        Self { operations, problem: validator(&problem) }
    }

    /// Fails where the answer is none that the document tells of.
    pub fn check(&self, method: &Method, path: &str, answer: &Answer) {
        let name = format!("{method} {path} -> {} {}\n{}", answer.status, answer.media_type(), answer.text);
        assert!(answer.headers.contains_key("x-request-id"), "no request id: {name}");
        let same_path: Vec<_> = self.operations.iter().filter(|operation| operation.is_at(path)).collect();
        let asked = if method == Method::HEAD { "GET" } else { method.as_str() };
        let Some(operation) = same_path.iter().find(|operation| operation.method == asked) else {
            let code = if same_path.is_empty() { "route_not_found" } else { "method_not_allowed" };
            assert_eq!((answer.media_type(), answer.json["code"].as_str()), (PROBLEM, Some(code)), "{name}");
            return assert_valid(&self.problem, &answer.json, &name);
        };
        let documented = operation.responses.get(&answer.status);
        let media_types = documented.unwrap_or_else(|| panic!("an undocumented status: {name}"));
        if media_types.is_empty() || method == Method::HEAD {
            return assert!(answer.text.is_empty(), "a body where none is documented: {name}");
        }
        let media_type = answer.media_type();
        let schema = media_types.get(media_type).unwrap_or_else(|| panic!("an undocumented media type: {name}"));
        let body = match media_type {
            "application/yaml" => {
                serde_saphyr::from_str(&answer.text).unwrap_or_else(|error| panic!("{error}: {name}"))
            }
            json if json.ends_with("json") => answer.json.clone(),
            _ => Value::String(answer.text.clone()),
        };
        assert_valid(schema, &body, &name);
    }
}

impl Operation {
    fn is_at(&self, path: &str) -> bool {
        let (template, path) = (self.template.split('/'), path.split('/'));
        template.clone().count() == path.clone().count()
            && template.zip(path).all(|(expected, found)| expected == found || expected.starts_with('{'))
    }
}

#[track_caller]
fn assert_valid(validator: &Validator, body: &Value, name: &str) {
    let errors: Vec<String> =
        validator.iter_errors(body).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "not as documented: {errors:#?}\n{name}");
}

fn media_types(document: &Value, response: &Value) -> HashMap<String, Validator> {
    let content = response["content"].as_object().cloned().unwrap_or_default();
    content
        .into_iter()
        .map(|(media_type, content)| {
            // A problem may have members that only it has.
            let extent = if media_type == PROBLEM { Extent::Open } else { Extent::Closed };
            let schema = expand(document, &content["schema"], extent);
            (media_type, validator(&schema))
        })
        .collect()
}

fn validator(schema: &Value) -> Validator {
    jsonschema::draft202012::options().should_validate_formats(true).build(schema).expect("the schema is one")
}

/// Whether an object may have members that the document does not name.
#[derive(Clone, Copy, PartialEq)]
enum Extent {
    Open,
    Closed,
}

/// The schema with all references resolved, and closed where it has to be: an answer that says more than the document is
/// not as documented either.
fn expand(document: &Value, schema: &Value, extent: Extent) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#')).expect("a reference leads somewhere");
        return expand(document, target, extent);
    }
    let Some(members) = schema.as_object() else { return schema.clone() };
    let mut expanded = Map::new();
    for (keyword, value) in members {
        let value = match keyword.as_str() {
            // The parts of a whole are open; the whole is closed below.
            "allOf" => each(value, |part| expand(document, part, Extent::Open)),
            "oneOf" | "anyOf" => each(value, |part| expand(document, part, extent)),
            "items" => expand(document, value, Extent::Closed),
            "properties" => {
                let properties = value.as_object().expect("properties are an object").iter();
                properties.map(|(name, property)| (name.clone(), expand(document, property, Extent::Closed))).collect()
            }
            _ => value.clone(),
        };
        expanded.insert(keyword.clone(), value);
    }
    let describes_members = expanded.contains_key("properties") || expanded.contains_key("allOf");
    if extent == Extent::Closed && describes_members && !expanded.contains_key("additionalProperties") {
        expanded.insert("unevaluatedProperties".to_owned(), json!(false));
    }
    Value::Object(expanded)
}

fn each(list: &Value, expand: impl FnMut(&Value) -> Value) -> Value {
    list.as_array().expect("a list of schemas").iter().map(expand).collect()
}
