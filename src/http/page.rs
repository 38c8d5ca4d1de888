//! The opaque cursor of a page: the last key of the page before, bound to the question asked.
//!
//! Keyset, not offset: the next page starts after a key, so it costs the same wherever it is, and
//! members who come or go meanwhile neither hide nor repeat others. The check sum is no secret; it
//! tells a damaged cursor, and one of another question, from a good one.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::error::{Code, Error};
use crate::domain::UserId;
use crate::store::Page;

/// First byte of every cursor. A change of the form takes another number.
const VERSION: u8 = 1;
const SUM_BYTES: usize = 8;

/// The question that a cursor belongs to: path, ids and filters, but not the limit.
#[derive(Clone, Debug)]
pub(super) struct Scope(Sha256);

impl Scope {
    /// `kind` names the path.
    pub(super) fn new(kind: &str) -> Self {
        Self(Sha256::new_with_prefix([VERSION])).and(kind)
    }

    /// Adds an id or a filter. Its length goes in first, so that two texts never run together.
    pub(super) fn and(mut self, part: &str) -> Self {
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
        self
    }

    fn sum(&self, key: &str) -> [u8; SUM_BYTES] {
        let digest = self.clone().and(key).0.finalize();
        std::array::from_fn(|i| digest[i])
    }

    /// The cursor of the page after `key`.
    pub(super) fn cursor(&self, key: &str) -> String {
        let bytes = [&[VERSION], &self.sum(key)[..], key.as_bytes()].concat();
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The key that a cursor of this scope stands for; without a cursor the empty key, which is
    /// below every other.
    pub(super) fn key(&self, cursor: Option<&str>) -> Result<String, Error> {
        let Some(cursor) = cursor else {
            return Ok(String::new());
        };
        let read = || {
            let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
            let (&version, rest) = bytes.split_first()?;
            let (sum, key) = rest.split_at_checked(SUM_BYTES)?;
            let key = str::from_utf8(key).ok()?;
            // Whoever makes up a cursor can make up its sum too, but the key has to be one.
            let good =
                version == VERSION && sum == self.sum(key) && UserId::parse(key.into()).is_ok();
            good.then(|| key.to_owned())
        };
        read().ok_or_else(|| {
            Error::new(
                Code::CursorInvalid,
                "cursor: expected the nextCursor of the same path with the same filters",
            )
        })
    }
}

/// The cursor of the next page, if there are more rows than those of this one.
pub(super) fn next<T>(page: &Page<T>, scope: &Scope, key: impl Fn(&T) -> &str) -> Option<String> {
    let last = page.rows.last().filter(|_| page.has_more);
    last.map(|last| scope.cursor(key(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_gives_back_its_key_and_is_safe_in_a_url() {
        let scope = Scope::new("members").and("g1");
        for key in ["u1", "a/b?c=d&e", "ß👩‍👩‍👧", &"x".repeat(1024)] {
            let cursor = scope.cursor(key);
            assert!(
                cursor
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            );
            assert_eq!(scope.key(Some(&cursor)).unwrap(), key);
        }
        assert_eq!(scope.key(None).unwrap(), "");
    }

    #[test]
    fn a_cursor_of_another_question_is_refused() {
        let cursor = Scope::new("members").and("g1").and("60").cursor("u1");
        for other in [
            Scope::new("members").and("g2").and("60"),
            Scope::new("members").and("g1").and("20"),
            Scope::new("members").and("g1"),
            Scope::new("members").and("g16").and("0"),
            Scope::new("groups").and("g1").and("60"),
        ] {
            assert_eq!(
                other.key(Some(&cursor)).unwrap_err().code,
                Code::CursorInvalid
            );
        }
    }

    #[test]
    fn a_damaged_cursor_is_refused() {
        let scope = Scope::new("members").and("g1");
        let cursor = scope.cursor("user-1");
        for i in 0..cursor.len() {
            let mut damaged = cursor.clone().into_bytes();
            damaged[i] = if damaged[i] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(scope.key(Some(&damaged)).is_err(), "{damaged}");
            assert!(scope.key(Some(&cursor[..i])).is_err());
        }
        for made_up in ["", "a\0b"] {
            assert!(scope.key(Some(&scope.cursor(made_up))).is_err());
        }
        for nonsense in ["", "!", "AQ", "é"] {
            assert!(scope.key(Some(nonsense)).is_err());
        }
    }
}
