//! The contract and its pages: `/openapi.json`, `/docs` and `/docs/errors`, all from what is in the binary.

use std::{fmt::Write as _, sync::Arc};

use axum::{
    Router,
    extract::{Path, rejection::PathRejection},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http::header;
use utoipa::openapi::OpenApi;

use super::{
    code::Code,
    problem::{Answer, Problem},
};

/// The page runs its own scripts only, and talks to nobody but us.
const CONTENT_SECURITY_POLICY: &str =
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

/// Serves the document and its page. The document is made once.
pub fn routes<S: Clone + Send + Sync + 'static>(document: &OpenApi) -> Router<S> {
    let json = Bytes::from(serde_json::to_vec(document).expect("an OpenAPI document always serialises"));
    let config = Arc::new(utoipa_swagger_ui::Config::new(["/openapi.json"]).validator_url("none"));
    let index = || {
        let config = Arc::clone(&config);
        get(move || async move { page("index.html", config) })
    };
    // Typed with a slash at the end as often as without.
    let (index, index_of_directory) = (index(), index());
    Router::new()
        .route("/openapi.json", get(move || async move { ([(header::CONTENT_TYPE, "application/json")], json) }))
        .route("/docs", index)
        .route("/docs/", index_of_directory)
        .route(
            "/docs/{*file}",
            get(move |file: Result<Path<String>, PathRejection>| async move { page_of(file, config) }),
        )
}

fn page_of(
    file: Result<Path<String>, PathRejection>,
    config: Arc<utoipa_swagger_ui::Config<'static>>,
) -> Answer<Response> {
    // No file has a name that is no text.
    let Path(file) = file.map_err(|_| Problem::of(Code::RouteNotFound))?;
    page(&file, config)
}

fn page(file: &str, config: Arc<utoipa_swagger_ui::Config<'static>>) -> Answer<Response> {
    let found = utoipa_swagger_ui::serve(file, config).map_err(|error| Problem::internal(&error))?;
    let found = found.ok_or_else(|| Problem::of(Code::RouteNotFound))?;
    let mut bytes = found.bytes.into_owned();
    if file == "index.html" {
        // So that the page's relative addresses work at /docs, without a redirect to /docs/.
        let text = String::from_utf8_lossy(&bytes).replacen("<head>", "<head><base href=\"/docs/\">", 1);
        bytes = text.into_bytes();
    }
    Ok(html(found.content_type, bytes))
}

fn html(content_type: String, bytes: Vec<u8>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY.to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    (headers, bytes).into_response()
}

/// All error codes
///
/// The page that the `type` of every problem leads to.
#[utoipa::path(
    get,
    path = "/docs/errors",
    operation_id = "getErrorCodes",
    tag = "operations",
    responses((status = 200, description = "A page for people.", body = String, content_type = "text/html; charset=utf-8")),
)]
pub async fn error_codes() -> Response {
    let mut rows = String::new();
    for code in Code::ALL {
        let (word, status) = (code.as_str(), code.status().as_u16());
        // Written by us, and free of markup: nothing to escape but the arrows of "<API secret>".
        let advice = code.advice().replace('<', "&lt;").replace('>', "&gt;");
        let title = code.title();
        let _ = writeln!(
            rows,
            "<tr id=\"{word}\"><td><code>{word}</code></td><td>{status}</td><td>{title}. {advice}</td></tr>"
        );
    }
    let text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Onair: error codes</title>\n\
         <style>body {{ font-family: sans-serif; margin: 2em }} td, th {{ padding: .4em 1em .4em 0; text-align: left; \
         vertical-align: top }} tr:target {{ background: #ffc }}</style></head>\n\
         <body><h1>Error codes</h1>\n<table>\n<tr><th>code</th><th>status</th><th>meaning</th></tr>\n{rows}</table></body>\n</html>\n"
    );
    html("text/html; charset=utf-8".to_owned(), text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors.md");

    fn markdown() -> String {
        let mut text = String::from(
            "# Error codes\n\n\
             Every answer that is no success is `application/problem+json` (RFC 9457):\n\n\
             ```json\n{\n  \"type\": \"/docs/errors#key_in_use\",\n  \"title\": \"The path is held by another publisher\",\n  \
             \"status\": 409,\n  \"detail\": \"...\",\n  \"code\": \"key_in_use\",\n  \
             \"request_id\": \"0199b1f2c0de7a3e9d5c1b2a3f4e5d6c\"\n}\n```\n\n\
             Go by `code`: it is stable. `detail` says what to do next and may change. Where a field is wrong, `errors` is a list of\n\
             `{field, detail}`. `request_id` is also in the header `X-Request-Id`, and in the log.\n\n\
             This table is made from the source (`src/http/code.rs`); with `ONAIR_WRITE_DOCS=1` its test writes it anew.\n\n\
             | code | status | meaning |\n|---|---|---|\n",
        );
        for code in Code::ALL {
            let advice = code.advice().replace('<', "&lt;");
            let _ = writeln!(text, "| `{}` | {} | {}. {advice} |", code.as_str(), code.status().as_u16(), code.title());
        }
        text
    }

    #[test]
    fn the_docs_list_every_code_as_it_is() {
        if std::env::var_os("ONAIR_WRITE_DOCS").is_some() {
            std::fs::write(FILE, markdown()).unwrap();
        }
        let held = std::fs::read_to_string(FILE).unwrap_or_default();
        assert!(
            held == markdown(),
            "docs/errors.md is not what src/http/code.rs says: run this test with ONAIR_WRITE_DOCS=1"
        );
    }

    #[test]
    fn the_page_is_in_the_binary_and_needs_no_redirect() {
        let config = Arc::new(utoipa_swagger_ui::Config::new(["/openapi.json"]));
        let answer = page("index.html", Arc::clone(&config)).unwrap();
        assert_eq!(answer.status(), 200);
        assert!(page("swagger-ui-bundle.js", Arc::clone(&config)).is_ok());
        assert_eq!(page("../Cargo.toml", config).unwrap_err().code(), Code::RouteNotFound);
    }
}
