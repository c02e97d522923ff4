//! How nodes prove who they are to us, and we to them. Everything is derived from the node secrets; nothing is stored.
//!
//! Invariants:
//! - A node's password opens that node only. The first secret issues, every secret verifies, so that secrets can be
//!   replaced without a gap.
//! - Verifying needs no I/O and takes the same time whichever character or secret is wrong.
//! - Password and token are made of letters, digits, `-` and `.`: they need no escaping in a URL, a header or YAML, and
//!   hold no `:`, at which `MediaMTX` would split a Bearer token in two.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq as _};

use crate::{
    config::ConfigSecret,
    domain::{NodeName, Timestamp},
};

/// How long a control token is valid. Long enough for clocks that differ a little and for a call of 12 s.
const CONTROL_TOKEN_TTL_S: i64 = 60;

const CONTROL_TOKEN_PREFIX: &str = "onair1";

/// What a node sends as its password.
#[derive(Clone, PartialEq, Eq)]
pub struct NodePassword(String);

/// What we send to a node's control API as Bearer token, and the node sends back to us to ask whether it is ours:
/// `onair1.<node>.<expiry, seconds since the Unix epoch>.<HMAC-SHA256 in hex>`.
#[derive(Clone, PartialEq, Eq)]
pub struct ControlToken(String);

macro_rules! silent {
    ($($name:ident),+) => {$(
        impl $name {
            /// The text itself.
            #[must_use]
            pub fn reveal(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    )+};
}
silent!(NodePassword, ControlToken);

/// Derives and verifies node passwords and control tokens.
#[derive(Clone)]
pub struct NodeCredentials {
    issuing: Hmac<Sha256>,
    /// The older secrets, which only verify.
    retiring: Vec<Hmac<Sha256>>,
}

impl NodeCredentials {
    /// The first secret issues, all verify. `None` where there is no secret.
    #[must_use]
    pub fn new(secrets: &[ConfigSecret]) -> Option<Self> {
        let (first, others) = secrets.split_first()?;
        Some(Self { issuing: keyed(first), retiring: others.iter().map(keyed).collect() })
    }

    /// The password of a node.
    #[must_use]
    pub fn password(&self, node: &NodeName) -> NodePassword {
        NodePassword(signature(&self.issuing, &password_message(node)))
    }

    /// The node that user and password of a call belong to.
    #[must_use]
    pub fn verify_password(&self, user: &str, password: &str) -> Option<NodeName> {
        let node = user.parse().ok()?;
        self.is_signed(&password_message(&node), password).then_some(node)
    }

    /// A token for the control API of a node, valid from `now` on for a minute.
    #[must_use]
    pub fn control_token(&self, node: &NodeName, now: Timestamp) -> ControlToken {
        let expiry_unix_s = now.as_ms().div_euclid(1000) + CONTROL_TOKEN_TTL_S;
        let signature = signature(&self.issuing, &control_message(node, expiry_unix_s));
        ControlToken(format!("{CONTROL_TOKEN_PREFIX}.{node}.{expiry_unix_s}.{signature}"))
    }

    /// True where the token was made by us for this node and is still valid.
    #[must_use]
    pub fn verify_control_token(&self, token: &str, node: &NodeName, now: Timestamp) -> bool {
        let Some((expiry_unix_s, signature)) = control_token_parts(token, node) else { return false };
        self.is_signed(&control_message(node, expiry_unix_s), signature)
            && now.as_ms() < expiry_unix_s.saturating_mul(1000)
    }

    fn is_signed(&self, message: &str, claimed: &str) -> bool {
        // All are computed, so that the time does not tell which one it was.
        std::iter::once(&self.issuing)
            .chain(&self.retiring)
            .map(|key| signature(key, message).as_bytes().ct_eq(claimed.as_bytes()))
            .fold(Choice::from(0), |any, this| any | this)
            .into()
    }
}

fn keyed(secret: &ConfigSecret) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.reveal().as_bytes()).expect("HMAC takes keys of every length")
}

fn control_token_parts<'a>(token: &'a str, node: &NodeName) -> Option<(i64, &'a str)> {
    let rest = token.strip_prefix(CONTROL_TOKEN_PREFIX)?.strip_prefix('.')?;
    let rest = rest.strip_prefix(node.as_str())?.strip_prefix('.')?;
    let (expiry_unix_s, signature) = rest.split_once('.')?;
    Some((expiry_unix_s.parse().ok()?, signature))
}

fn password_message(node: &NodeName) -> String {
    format!("onair node {node}")
}

fn control_message(node: &NodeName, expiry_unix_s: i64) -> String {
    format!("onair control {node} {expiry_unix_s}")
}

fn signature(key: &Hmac<Sha256>, message: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut mac = key.clone();
    mac.update(message.as_bytes());
    let mut text = String::with_capacity(64);
    for byte in mac.finalize().into_bytes() {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "old-old-old-old-old-old-old-old-old";
    const NEW: &str = "new-new-new-new-new-new-new-new-new";

    fn credentials(secrets: &[&str]) -> NodeCredentials {
        let secrets: Vec<_> = secrets.iter().copied().map(ConfigSecret::new).collect();
        NodeCredentials::new(&secrets).unwrap()
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn at_s(unix_s: i64) -> Timestamp {
        Timestamp::from_ms(unix_s * 1000)
    }

    #[test]
    fn a_password_is_the_hmac_of_the_nodes_name() {
        // printf 'onair node edge-1' | openssl dgst -sha256 -hmac old-old-old-old-old-old-old-old-old
        let expected = "1089344581b92b671e3cc90505afa7be87b600b684d849bbd8be8c85e3a26dc0";
        assert_eq!(credentials(&[OLD]).password(&node("edge-1")).reveal(), expected);
    }

    #[test]
    fn a_password_opens_its_own_node_only() {
        let credentials = credentials(&[OLD]);
        let password = credentials.password(&node("edge-1"));
        assert_eq!(credentials.verify_password("edge-1", password.reveal()), Some(node("edge-1")));
        assert_eq!(credentials.verify_password("edge-2", password.reveal()), None);
        assert_eq!(credentials.verify_password("", password.reveal()), None);
        assert_eq!(credentials.verify_password("edge-1", ""), None);
        assert_eq!(credentials.verify_password("edge-1", &password.reveal()[1..]), None);
        assert_eq!(credentials.verify_password("edge-1", &password.reveal().to_uppercase()), None);
    }

    #[test]
    fn secrets_can_be_replaced_without_a_gap() {
        let (before, during, after) = (credentials(&[OLD]), credentials(&[NEW, OLD]), credentials(&[NEW]));
        let name = node("edge-1");
        let old = before.password(&name);
        assert!(during.verify_password("edge-1", old.reveal()).is_some());
        assert!(after.verify_password("edge-1", old.reveal()).is_none());
        assert_eq!(during.password(&name), after.password(&name));
        let token = before.control_token(&name, at_s(0));
        assert!(during.verify_control_token(token.reveal(), &name, at_s(1)));
        assert!(!after.verify_control_token(token.reveal(), &name, at_s(1)));
    }

    #[test]
    fn a_control_token_is_valid_for_a_minute_and_for_one_node() {
        let credentials = credentials(&[OLD]);
        let (here, there) = (node("edge-1"), node("edge-1-b"));
        let token = credentials.control_token(&here, Timestamp::from_ms(1_000_999));
        let valid_at = |ms| credentials.verify_control_token(token.reveal(), &here, Timestamp::from_ms(ms));
        assert!(valid_at(1_000_999));
        assert!(valid_at(1_059_999));
        assert!(!valid_at(1_060_000));
        assert!(!credentials.verify_control_token(token.reveal(), &there, at_s(1000)));
        let of_there = credentials.control_token(&there, at_s(1000));
        assert!(!credentials.verify_control_token(of_there.reveal(), &here, at_s(1000)));
    }

    #[test]
    fn a_control_token_that_was_tampered_with_is_not_ours() {
        let credentials = credentials(&[OLD]);
        let name = node("edge-1");
        let token = credentials.control_token(&name, at_s(1000)).reveal().to_owned();
        assert!(credentials.verify_control_token(&token, &name, at_s(1000)));
        for position in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[position] = if bytes[position] == b'1' { b'2' } else { b'1' };
            let tampered = String::from_utf8(bytes).unwrap();
            assert!(!credentials.verify_control_token(&tampered, &name, at_s(1000)), "position {position}");
        }
        for other in ["", "onair1", "onair1.edge-1", "onair1.edge-1.1060", "onair1.edge-1.1060.", "onair1.edge-1.x.y"] {
            assert!(!credentials.verify_control_token(other, &name, at_s(1000)), "{other}");
        }
        let password = credentials.password(&name);
        assert!(!credentials.verify_control_token(password.reveal(), &name, at_s(1000)));
    }

    #[test]
    fn a_control_token_holds_no_colon_and_prints_nothing() {
        let token = credentials(&[OLD]).control_token(&node("edge-1"), at_s(1_700_000_000));
        assert!(token.reveal().bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte)));
        assert_eq!(format!("{token:?}"), "ControlToken(..)");
        assert_eq!(format!("{:?}", credentials(&[OLD]).password(&node("a"))), "NodePassword(..)");
    }

    #[test]
    fn without_a_secret_there_are_no_credentials() {
        assert!(NodeCredentials::new(&[]).is_none());
    }
}
