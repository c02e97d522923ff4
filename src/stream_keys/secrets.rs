//! What is drawn at random: secrets, and paths for those who name none.

use rand::{TryRng as _, rngs::SysRng};

use super::StreamKeysError;
use crate::domain::{Secret, StreamPath};

/// The characters that people tell secrets apart by.
const HINT_CHARACTERS: usize = 4;

/// The largest multiple of 62 that a byte can be below. Bytes from here on are drawn again: taking them modulo 62 would
/// make some characters likelier than others.
const DRAW_BELOW: u8 = 248;

const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// 80 bits: nobody finds a private show by guessing.
const PATH_CHARACTERS: usize = 16;

fn random_byte() -> Result<u8, StreamKeysError> {
    let mut byte = [0];
    SysRng.try_fill_bytes(&mut byte).map_err(|_| StreamKeysError::NoRandomness)?;
    Ok(byte[0])
}

/// Draws a secret.
pub(super) fn draw_secret() -> Result<Secret, StreamKeysError> {
    let mut draws = [0; _];
    for draw in &mut draws {
        *draw = loop {
            let byte = random_byte()?;
            if byte < DRAW_BELOW {
                break byte % 62;
            }
        };
    }
    Ok(Secret::from_draws(draws).expect("every draw is below 62"))
}

/// What is kept of a secret for people to recognise it by.
pub(super) fn hint_of(secret: &Secret) -> &str {
    let text = secret.reveal();
    &text[text.len() - HINT_CHARACTERS..]
}

/// Draws a path that nobody guesses. It is no secret: whoever may watch gets to know it.
pub(super) fn draw_path() -> Result<StreamPath, StreamKeysError> {
    let mut text = String::from("live/");
    for _ in 0..PATH_CHARACTERS {
        text.push(char::from(BASE32[usize::from(random_byte()? % 32)]));
    }
    Ok(text.parse().expect("letters and digits after one slash are a path"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn secrets_are_well_formed_and_never_the_same() {
        let secrets: BTreeSet<String> = (0..100).map(|_| draw_secret().unwrap().reveal().to_owned()).collect();
        assert_eq!(secrets.len(), 100);
        assert!(secrets.iter().all(|secret| Secret::parse(secret).is_ok()));
    }

    #[test]
    fn every_character_of_the_alphabet_is_drawn_about_equally_often() {
        let mut counts = [0_u32; 128];
        for _ in 0..2000 {
            for byte in draw_secret().unwrap().reveal().bytes().skip(Secret::PREFIX.len()).take(28) {
                counts[usize::from(byte)] += 1;
            }
        }
        let drawn: Vec<u32> = counts.into_iter().filter(|&count| count > 0).collect();
        // 56,000 draws over 62 characters: 903 each, with a standard deviation of 30. Modulo alone would give the first
        // eight a quarter more.
        assert_eq!(drawn.len(), 62);
        assert!(drawn.iter().all(|count| (700..1100).contains(count)), "{drawn:?}");
    }

    #[test]
    fn made_up_paths_are_public_names_and_never_the_same() {
        let paths: BTreeSet<String> = (0..100).map(|_| draw_path().unwrap().to_string()).collect();
        assert_eq!(paths.len(), 100);
        assert!(paths.iter().all(|path| path.starts_with("live/") && path.len() == 5 + PATH_CHARACTERS));
    }
}
