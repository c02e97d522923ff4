//! The OpenAPI document: what the handlers' annotations leave out because it follows from a rule.
//!
//! Role: [`base`] says who we are and how callers are known; [`complete`] adds to every operation the problems that all of
//! its kind can have, so that a handler names only its own.
//!
//! Invariant: the schema of every problem response lists the codes that it can have. A client test that holds answers
//! against the document thereby finds a code that is not documented.

use std::collections::{BTreeMap, BTreeSet};

use utoipa::{
    PartialSchema as _,
    openapi::{
        AllOfBuilder, Components, ContentBuilder, Header, Info, ObjectBuilder, OpenApi, Ref, RefOr, Response,
        ResponseBuilder,
        extensions::Extensions,
        header::HeaderBuilder,
        path::{Operation, ParameterIn, PathItem},
        schema::Type,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
        tag::TagBuilder,
    },
};

use super::{
    code::Code,
    problem::{self, FieldError, Problem, ProblemBody},
};

/// The security scheme of the frontend and of administrators.
const API: &str = "api";
/// The security scheme of nodes.
const NODE: &str = "node";

/// Where a problem response keeps its codes, for programs that read the document.
const CODES: &str = "x-problem-codes";
const REQUEST_ID_HEADER: &str = "RequestId";

const TAGS: [(&str, &str); 6] = [
    ("streams", "What is on air, and what was."),
    ("stream-keys", "Secrets that admit a publisher to a path."),
    ("broadcasters", "Who goes live."),
    ("nodes", "The MediaMTX servers."),
    ("mediamtx", "What MediaMTX calls: the decision and the hooks."),
    ("operations", "For those who run the service."),
];

/// Declares the problems that only one operation has, as a type for its `responses(...)`.
macro_rules! problems {
    ($($name:ident: $($code:ident),+;)+) => {$(
        struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses()
            -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::response::Response>> {
                $crate::http::openapi::responses([$($crate::http::code::Code::$code),+])
            }
        }
    )+};
}
pub(super) use problems;

/// The document without its paths.
pub fn base() -> OpenApi {
    let mut info = Info::new("Onair", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Decides who may go on air on a fleet of MediaMTX servers, knows what is on air, and keeps the record.\n\n\
         Times are RFC 3339 in UTC, ids are UUIDs, durations are in the unit that ends the field's name. Every answer that \
         is no success is `application/problem+json` with a stable `code`; all codes: [/docs/errors](/docs/errors). Every \
         answer has an `X-Request-Id`: the caller's, where one of up to 64 letters, digits, `-` and `_` was sent."
            .to_owned(),
    );
    let mut document = OpenApi::new(info, utoipa::openapi::Paths::new());
    let tag =
        |(name, description): &(&str, &str)| TagBuilder::new().name(*name).description(Some(*description)).build();
    document.tags = Some(TAGS.iter().map(tag).collect());
    document.components = Some(components());
    document
}

fn components() -> Components {
    let mut components = Components::new();
    components.schemas.insert("Problem".to_owned(), ProblemBody::schema());
    components.schemas.insert("FieldError".to_owned(), FieldError::schema());
    let scheme = |scheme: HttpAuthScheme, description: &str| {
        SecurityScheme::Http(HttpBuilder::new().scheme(scheme).description(Some(description)).build())
    };
    let bearer = "One of the API secrets of the configuration.";
    let basic = "The node's name and its password, as `onair mediamtx-config NODE` prints them.";
    components.add_security_scheme(API, scheme(HttpAuthScheme::Bearer, bearer));
    components.add_security_scheme(NODE, scheme(HttpAuthScheme::Basic, basic));
    components.headers.insert(REQUEST_ID_HEADER.to_owned(), RefOr::T(request_id_header()));
    components
}

fn request_id_header() -> Header {
    let schema = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[A-Za-z0-9_-]{1,64}$"));
    HeaderBuilder::new().schema(Some(schema)).description(Some("Names this request in the logs.")).build()
}

/// The responses for problems with these codes, one for each status.
pub(super) fn responses(codes: impl IntoIterator<Item = Code>) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, BTreeSet<Code>> = BTreeMap::new();
    for code in codes {
        by_status.entry(code.status().as_u16()).or_default().insert(code);
    }
    by_status.into_iter().map(|(status, codes)| (status.to_string(), RefOr::T(response(&codes)))).collect()
}

fn response(codes: &BTreeSet<Code>) -> Response {
    let words: Vec<&str> = codes.iter().map(|code| code.as_str()).collect();
    let lines: Vec<String> = codes.iter().map(|code| format!("- `{}`: {}.", code.as_str(), code.title())).collect();
    let code = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words.clone()));
    let schema = AllOfBuilder::new()
        .item(Ref::from_schema_name("Problem"))
        .item(ObjectBuilder::new().schema_type(Type::Object).property("code", code).required("code"));
    let example = codes.first().map(|&code| example(code));
    ResponseBuilder::new()
        .description(lines.join("\n"))
        .content(problem::MEDIA_TYPE, ContentBuilder::new().schema(Some(schema)).example(example).build())
        .extensions(Some(Extensions::from_iter([(CODES, serde_json::Value::from(words))])))
        .build()
}

fn example(code: Code) -> serde_json::Value {
    let mut problem = Problem::of(code);
    if matches!(code, Code::InvalidInput | Code::InvalidQuery) {
        problem = problem.with_field("limit", "must be a whole number from 1 to 1000");
    }
    serde_json::from_slice(&problem.to_json("0199b1f2c0de7a3e9d5c1b2a3f4e5d6c")).expect("made as JSON just now")
}

/// Adds what follows from rules: the problems that every operation of a kind can have, and the header of all answers.
pub fn complete(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        for operation in operations_mut(item) {
            add_general_problems(operation);
            for response in operation.responses.responses.values_mut() {
                if let RefOr::T(response) = response {
                    let header = RefOr::Ref(Ref::new(format!("#/components/headers/{REQUEST_ID_HEADER}")));
                    response.headers.insert("X-Request-Id".to_owned(), header);
                }
            }
        }
    }
}

fn operations_mut(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch].into_iter().flatten()
}

fn add_general_problems(operation: &mut Operation) {
    let own = operation.responses.responses.values().flat_map(codes_of);
    let mut codes: BTreeSet<Code> = own.chain(general_codes(operation)).collect();
    // The auth call has its own word for being late.
    if codes.contains(&Code::CredentialsMissing) {
        codes.remove(&Code::RequestTimeout);
    }
    operation.responses.responses.extend(responses(codes));
}

fn codes_of(response: &RefOr<Response>) -> Vec<Code> {
    let RefOr::T(Response { extensions: Some(extensions), .. }) = response else { return Vec::new() };
    let words = extensions.get(CODES).and_then(|codes| codes.as_array()).into_iter().flatten();
    words.filter_map(|word| Code::ALL.iter().copied().find(|code| word == code.as_str())).collect()
}

fn general_codes(operation: &Operation) -> BTreeSet<Code> {
    let mut codes = BTreeSet::from([Code::HeadersTooLarge, Code::RequestTimeout, Code::Overloaded, Code::Internal]);
    if is_secured_by(operation, API) {
        codes.insert(Code::Unauthorized);
    }
    if is_secured_by(operation, NODE) {
        codes.insert(Code::NodeUnauthorized);
    }
    if operation.request_body.is_some() {
        codes.extend([Code::BodyMalformed, Code::BodyTooLarge, Code::BodyTooSlow]);
        codes.extend([Code::UnsupportedMediaType, Code::InvalidInput]);
    }
    for parameter in operation.parameters.iter().flatten() {
        match parameter {
            RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Path => codes.insert(Code::IdMalformed),
            RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => codes.insert(Code::InvalidQuery),
            RefOr::T(_) | RefOr::Ref(_) => false,
        };
    }
    codes
}

fn is_secured_by(operation: &Operation, scheme: &str) -> bool {
    // A requirement can be looked into only as JSON.
    let requirements = serde_json::to_value(&operation.security).unwrap_or_default();
    requirements.as_array().into_iter().flatten().any(|requirement| requirement.get(scheme).is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn document() -> Value {
        serde_json::to_value(crate::http::document()).unwrap()
    }

    /// Every operation, with its method and address.
    fn operations(document: &Value) -> Vec<(String, Value)> {
        let paths = document["paths"].as_object().unwrap();
        let of_path = |(path, item): (&String, &Value)| {
            let path = path.clone();
            let methods = item.as_object().unwrap().clone().into_iter();
            methods.map(move |(method, operation)| (format!("{method} {path}"), operation))
        };
        paths.iter().flat_map(of_path).collect()
    }

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    found.insert(reference.clone());
                }
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn the_document_is_openapi_3_1_and_every_reference_leads_somewhere() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        serde_json::from_value::<OpenApi>(document.clone()).unwrap();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("references stay within the document");
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }

    #[test]
    fn every_operation_says_what_it_is_and_who_may_call_it() {
        let open = ["/healthz", "/readyz", "/metrics", "/docs/errors"];
        let document = document();
        let mut ids = BTreeSet::new();
        for (name, operation) in operations(&document) {
            let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{name} has no operationId"));
            assert!(ids.insert(id.to_owned()), "{id} is there twice");
            assert!(operation["summary"].is_string(), "{name} has no summary");
            let tag = operation["tags"][0].as_str().unwrap();
            assert!(TAGS.iter().any(|(known, _)| *known == tag), "{name} has the unknown tag {tag}");
            let is_open = open.iter().any(|path| name.ends_with(path));
            assert_eq!(operation["security"].is_array(), !is_open, "{name}: who may call it?");
        }
    }

    #[test]
    fn every_operation_documents_its_problems() {
        let document = document();
        for (name, operation) in operations(&document) {
            let codes = |status: &str| {
                let codes = operation["responses"][status][CODES].as_array().cloned().unwrap_or_default();
                codes.into_iter().map(|code| code.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
            };
            assert!(codes("500").contains("internal"), "{name}");
            assert!(codes("503").contains("overloaded"), "{name}");
            assert_eq!(!codes("401").is_empty(), operation["security"].is_array(), "{name}: 401");
            assert_eq!(codes("422").contains("invalid_input"), operation["requestBody"].is_object(), "{name}: 422");
            assert_eq!(codes("413").contains("body_too_large"), operation["requestBody"].is_object(), "{name}: 413");
            assert_eq!(codes("400").contains("id_malformed"), name.contains('{'), "{name}: 400");
            let successes = operation["responses"].as_object().unwrap().keys().filter(|status| status.starts_with('2'));
            assert!(successes.count() > 0, "{name} never succeeds");
        }
    }

    #[test]
    fn a_problem_response_names_its_codes_in_its_schema() {
        let document = document();
        let response = &document["paths"]["/v1/stream-keys"]["post"]["responses"]["409"];
        assert_eq!(response[CODES], serde_json::json!(["path_taken"]));
        let schema = &response["content"][problem::MEDIA_TYPE]["schema"]["allOf"];
        assert_eq!(schema[0]["$ref"], "#/components/schemas/Problem");
        assert_eq!(schema[1]["properties"]["code"]["enum"], serde_json::json!(["path_taken"]));
    }
}
