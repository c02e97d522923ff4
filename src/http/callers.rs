//! Who calls: the frontend and administrators by API secret, nodes by name and password.
//!
//! Invariants:
//! - A secret that was sent is hashed at once and compared in constant time with all that are valid, so that the time of
//!   the answer tells neither how much of it was right nor which one it was.
//! - Being a caller is a type: a handler that takes [`ApiCaller`] or [`NodeCaller`] cannot be reached without.

use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, header, request::Parts};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use super::{code::Code, frame::Framed, problem::Problem};
use crate::{
    config::ConfigSecret,
    domain::{Actor, ChangedBy, NodeName},
};

/// The API secrets that are valid now; several while one replaces another.
#[derive(Clone)]
pub struct ApiSecrets(Arc<[[u8; 32]]>);

impl ApiSecrets {
    /// Keeps the hashes only.
    #[must_use]
    pub fn new(secrets: &[ConfigSecret]) -> Self {
        Self(secrets.iter().map(|secret| Sha256::digest(secret.reveal().as_bytes()).into()).collect())
    }

    /// Which of the secrets it is, counted from 1.
    fn find(&self, sent: &str) -> Option<u32> {
        let sent: [u8; 32] = Sha256::digest(sent.as_bytes()).into();
        let mut found = 0_u32;
        for (number, known) in (1_u32..).zip(self.0.iter()) {
            let same: Choice = known.as_slice().ct_eq(&sent);
            found.conditional_assign(&number, same);
        }
        (found > 0).then_some(found)
    }
}

/// The frontend or an administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiCaller {
    /// Who it is in the audit log: which of the configured secrets was used, in which request.
    pub by: ChangedBy,
}

impl<S> FromRequestParts<S> for ApiCaller
where
    S: Send + Sync,
    ApiSecrets: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let number = credentials(&parts.headers, "bearer").and_then(|sent| ApiSecrets::from_ref(state).find(sent));
        let number = number.ok_or_else(|| Problem::of(Code::Unauthorized))?;
        let request_id = parts.extensions.get::<Framed>().map(|framed| framed.id.as_str().to_owned());
        Ok(Self { by: ChangedBy { actor: Actor::ApiSecret(number), request_id } })
    }
}

/// Knows the nodes and their passwords.
pub trait KnowsNodes {
    /// The node of the fleet that user and password belong to.
    fn node_of(&self, user: &str, password: &str) -> impl Future<Output = Option<NodeName>> + Send;
}

/// A node: what calls is the `MediaMTX` of that name, or one of its hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCaller(pub NodeName);

impl<S> FromRequestParts<S> for NodeCaller
where
    S: KnowsNodes + Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let unauthorized = || Problem::of(Code::NodeUnauthorized);
        let sent = credentials(&parts.headers, "basic").and_then(|sent| BASE64_STANDARD.decode(sent).ok());
        let sent = sent.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(unauthorized)?;
        let (user, password) = sent.split_once(':').ok_or_else(unauthorized)?;
        state.node_of(user, password).await.map(Self).ok_or_else(unauthorized)
    }
}

fn credentials<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (sent_scheme, sent) = value.split_once(' ')?;
    sent_scheme.eq_ignore_ascii_case(scheme).then(|| sent.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> ApiSecrets {
        ApiSecrets::new(&[ConfigSecret::new("first-secret"), ConfigSecret::new("second-secret")])
    }

    async fn caller(headers: &[(&str, &str)]) -> Option<Actor> {
        let mut request = http::Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        ApiCaller::from_request_parts(&mut parts, &secrets()).await.ok().map(|caller| caller.by.actor)
    }

    #[tokio::test]
    async fn any_of_the_secrets_opens_and_names_the_caller() {
        assert_eq!(caller(&[("authorization", "Bearer first-secret")]).await, Some(Actor::ApiSecret(1)));
        assert_eq!(caller(&[("authorization", "bearer second-secret")]).await, Some(Actor::ApiSecret(2)));
    }

    #[tokio::test]
    async fn everything_else_is_refused() {
        for value in ["", "Bearer", "Bearer ", "Bearer first-secre", "Basic first-secret", "first-secret"] {
            assert_eq!(caller(&[("authorization", value)]).await, None, "{value}");
        }
        assert_eq!(caller(&[]).await, None);
        let twice = [("authorization", "Bearer first-secret"), ("authorization", "Bearer second-secret")];
        assert_eq!(caller(&twice).await, None, "two different credentials say nothing about who calls");
    }

    struct OneNode;

    impl KnowsNodes for OneNode {
        async fn node_of(&self, user: &str, password: &str) -> Option<NodeName> {
            (user == "edge-1" && password == "pass:word").then(|| user.parse().unwrap())
        }
    }

    #[tokio::test]
    async fn a_node_calls_with_its_name_and_password() {
        let node = async |text: &str| {
            let value = format!("Basic {}", BASE64_STANDARD.encode(text));
            let request = http::Request::builder().header(header::AUTHORIZATION, value).body(()).unwrap();
            NodeCaller::from_request_parts(&mut request.into_parts().0, &OneNode).await.ok()
        };
        assert_eq!(node("edge-1:pass:word").await, Some(NodeCaller("edge-1".parse().unwrap())));
        assert_eq!(node("edge-1:wrong").await, None);
        assert_eq!(node("edge-2:pass:word").await, None);
        assert_eq!(node("edge-1").await, None);
    }
}
