//! The extractors as `fuzz/` reaches them: a body or query in, what was read or the problem's JSON out.

use super::{
    fields,
    hooks::HookBody,
    input::{from_form, from_json, invalid},
    problem::{Answer, Problem},
    streams_dto::ListStreams,
};
use crate::{admission::AuthRequest, domain::Cursor, http::code::Code, streams::LivePosition};

fn told(problem: &Problem) -> String {
    String::from_utf8_lossy(&problem.to_json("request")).into_owned()
}

pub(crate) fn auth_body(bytes: &[u8]) -> Result<AuthRequest, String> {
    from_json(bytes).map_err(|problem| told(&problem))
}

/// The problems of reading it as JSON and as a form.
pub(crate) fn hook_body(bytes: &[u8]) -> [Option<String>; 2] {
    let as_json: Answer<HookBody> = from_json(bytes);
    let as_form: Answer<HookBody> = from_form(bytes).map_err(|wrong| invalid(Code::InvalidInput, wrong));
    [as_json, as_form].map(|read| read.err().map(|problem| told(&problem)))
}

pub(crate) fn list_query(bytes: &[u8]) -> Result<Option<Cursor<LivePosition>>, String> {
    let read: Answer<ListStreams> = from_form(bytes).map_err(|wrong| invalid(Code::InvalidQuery, wrong));
    let cursor = read.and_then(|query| fields::cursor(query.cursor.as_deref()));
    cursor.map_err(|problem| told(&problem))
}
