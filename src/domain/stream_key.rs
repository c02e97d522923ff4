//! The stream key: what admits a publisher to one path.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{BroadcasterId, KeyId, Label, Metadata, Revision, StreamPath, Timestamp, words::words};

words! {
    /// What a key may do now. `in_use` is a fact beside it, not a status.
    pub enum KeyStatus {
        /// Admits a publisher.
        Active = "active",
        /// Refused until it is enabled again.
        Disabled = "disabled",
        /// Dead for ever.
        Revoked = "revoked",
        /// Its time is over; a later expiry revives it.
        Expired = "expired",
    }
}

words! {
    /// What happens when a valid publisher comes for a path that a healthy stream holds.
    pub enum OnConflict {
        /// The newcomer is refused with `key_in_use`.
        Reject = "reject",
        /// The newcomer wins; the older source is kicked.
        TakeOver = "take_over",
    }
}

words! {
    /// Who may watch.
    pub enum Playback {
        /// Everybody, while the path is on air.
        Public = "public",
        /// Nobody through Onair: readers are refused.
        Private = "private",
    }
}

/// Why a text is no secret of ours. It never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a stream key: wrong form or a mistyped character")]
pub struct SecretError;

/// The secret of a stream key: `sk_`, 28 random letters and digits (166 bits), and a checksum of 6.
///
/// Letters and digits only, since `:` breaks SRT and Bearer, `&` breaks RTMP, and SRT's stream id has 512 bytes. The
/// checksum tells a mistyped key from an unknown one without any I/O; it is no protection, the random part is.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

impl Secret {
    /// What every secret begins with.
    pub const PREFIX: &'static str = "sk_";
    const RANDOM_CHARACTERS: usize = 28;
    const CHECKSUM_CHARACTERS: usize = 6;
    /// The length of every secret, in characters.
    pub const LENGTH: usize = Self::PREFIX.len() + Self::RANDOM_CHARACTERS + Self::CHECKSUM_CHARACTERS;

    /// Makes a secret of 28 numbers below 62, each drawn uniformly from a cryptographic source.
    ///
    /// `None` where a number is out of range.
    #[must_use]
    pub fn from_draws(draws: [u8; Self::RANDOM_CHARACTERS]) -> Option<Self> {
        let mut text = String::with_capacity(Self::LENGTH);
        text.push_str(Self::PREFIX);
        for draw in draws {
            text.push(char::from(*ALPHABET.get(usize::from(draw))?));
        }
        let checksum = Self::checksum(&text);
        text.push_str(std::str::from_utf8(&checksum).ok()?);
        Some(Self(text))
    }

    /// Recognises a secret by its form and checksum.
    ///
    /// # Errors
    /// Where the text cannot be a secret that Onair made.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let form_is_right = text.len() == Self::LENGTH
            && text.starts_with(Self::PREFIX)
            && text.bytes().skip(Self::PREFIX.len()).all(|byte| byte.is_ascii_alphanumeric());
        if !form_is_right {
            return Err(SecretError);
        }
        let (body, checksum) = text.split_at(Self::LENGTH - Self::CHECKSUM_CHARACTERS);
        if Self::checksum(body).as_slice() != checksum.as_bytes() {
            return Err(SecretError);
        }
        Ok(Self(text.to_owned()))
    }

    /// True where the text begins like a secret of ours, mistyped or not, or holds a whole one anywhere: enough to warn that
    /// one was written in a public place.
    #[must_use]
    pub fn looks_like_one(text: &str) -> bool {
        let begins_like_one = text.starts_with(Self::PREFIX) && text.len() > Self::PREFIX.len();
        let is_one = |at: usize| text.get(at..at + Self::LENGTH).is_some_and(|part| Self::parse(part).is_ok());
        begins_like_one || text.match_indices(Self::PREFIX).any(|(at, _)| is_one(at))
    }

    fn checksum(body: &str) -> [u8; Self::CHECKSUM_CHARACTERS] {
        let digest = Sha256::digest(body.as_bytes());
        let mut rest = u64::from_be_bytes(digest[..8].try_into().expect("a SHA-256 has 32 bytes"));
        [(); Self::CHECKSUM_CHARACTERS].map(|()| {
            let character = ALPHABET[usize::try_from(rest % 62).expect("below 62")];
            rest /= 62;
            character
        })
    }

    /// What is stored and looked up instead of the secret.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.0.as_bytes()).into())
    }

    /// The text itself: for the one answer that shows it and the publish URLs in it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

/// SHA-256 of a secret. Enough, without salt or stretching, because the secret has 166 random bits.
#[derive(Clone, Copy, Eq)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    /// Lower-case hexadecimal, as it stands in Redis keys.
    #[must_use]
    pub fn to_hex(self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(64);
        for byte in self.0 {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        text
    }
}

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl std::hash::Hash for SecretHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretHash(..)")
    }
}

/// A stream key as it is kept: everything but the secret.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamKey {
    /// Its id.
    pub id: KeyId,
    /// Whose it is.
    pub broadcaster_id: BroadcasterId,
    /// The path it admits to.
    pub path: StreamPath,
    /// SHA-256 of the secret.
    pub secret_hash: SecretHash,
    /// The last four characters of the secret, by which people tell keys apart.
    pub hint: String,
    /// A name for the administrators.
    pub label: Option<Label>,
    /// Title of the streams that it starts.
    pub title: Option<String>,
    /// Description of the streams that it starts.
    pub description: Option<String>,
    /// Free data, copied to the streams that it starts.
    pub metadata: Metadata,
    /// Never [`KeyStatus::Expired`]: that follows from `expires_at`, see [`StreamKey::status_at`].
    pub stored_status: KeyStatus,
    /// What happens when a second publisher comes.
    pub on_conflict: OnConflict,
    /// Who may watch.
    pub playback: Playback,
    /// When it stops admitting, and its stream is ended.
    pub expires_at: Option<Timestamp>,
    /// Counts its changes; Redis never goes back to a lower one.
    pub revision: Revision,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When it last admitted a publisher, as far as the history has been written.
    pub last_used_at: Option<Timestamp>,
    /// How many streams it has started, as far as the history has been written.
    pub use_count: i64,
}

impl StreamKey {
    /// The status at an instant: a key expires exactly at `expires_at`.
    #[must_use]
    pub fn status_at(&self, now: Timestamp) -> KeyStatus {
        match (self.stored_status, self.expires_at) {
            (KeyStatus::Active, Some(expires_at)) if expires_at <= now => KeyStatus::Expired,
            (status, _) => status,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(draw: u8) -> Secret {
        Secret::from_draws([draw; Secret::RANDOM_CHARACTERS]).unwrap()
    }

    #[test]
    fn a_secret_is_short_and_plain_enough_for_every_protocol() {
        let secret = secret(61);
        assert_eq!(secret.reveal().len(), Secret::LENGTH);
        assert!(secret.reveal().len() <= 64);
        assert!(secret.reveal()[3..].bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_eq!(Secret::parse(secret.reveal()), Ok(secret));
    }

    #[test]
    fn one_mistyped_character_is_recognised() {
        let text = secret(7).reveal().to_owned();
        for position in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[position] = if bytes[position] == b'x' { b'y' } else { b'x' };
            let mistyped = String::from_utf8(bytes).unwrap();
            assert_eq!(Secret::parse(&mistyped), Err(SecretError), "position {position}");
        }
        assert_eq!(Secret::parse(&text[1..]), Err(SecretError));
        assert_eq!(Secret::parse(&format!("{text}a")), Err(SecretError));
    }

    #[test]
    fn a_secret_is_seen_wherever_it_stands() {
        let whole = secret(7).reveal().to_owned();
        for text in [whole.clone(), format!("ada{whole}"), format!("sk_sk_{whole}.x"), whole[..9].to_owned()] {
            assert!(Secret::looks_like_one(&text), "{text}");
        }
        for text in ["task_force", "sk_", "ask_for_more_than_the_length_of_a_secret_takes"] {
            assert!(!Secret::looks_like_one(text), "{text}");
        }
    }

    #[test]
    fn neither_the_secret_nor_its_hash_can_be_printed_by_accident() {
        assert_eq!(format!("{:?}", secret(1)), "Secret(..)");
        assert_eq!(format!("{:?}", secret(1).hash()), "SecretHash(..)");
    }

    #[test]
    fn a_draw_out_of_range_makes_no_secret() {
        assert!(Secret::from_draws([62; Secret::RANDOM_CHARACTERS]).is_none());
    }
}
