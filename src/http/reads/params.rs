//! Parameters of reads: ids, limits, and entity tags.

use poem::http::HeaderMap;
use poem::http::header::IF_NONE_MATCH;
use time::OffsetDateTime;

use crate::domain::{GroupId, UserId};
use crate::http::error::Error;

/// Limit of a page without a `limit`.
pub(super) fn default_limit() -> u32 {
    100
}

/// Example of a group, as in OpenIM's documentation.
pub(super) fn example_group() -> String {
    "12345".into()
}

/// Example of a user, as in OpenIM's documentation.
pub(super) fn example_user() -> String {
    "user789".into()
}

pub(super) fn group_id(id: String) -> Result<GroupId, Error> {
    GroupId::parse(id).map_err(|error| Error::id("groupID", error))
}

pub(super) fn user_id(id: String) -> Result<UserId, Error> {
    UserId::parse(id).map_err(|error| Error::id("userID", error))
}

/// ETag of a row. Each change of a value moves `updated_at` by at least a microsecond, so all digits of
/// it make a strong ETag.
pub(super) fn etag_of(updated_at: OffsetDateTime) -> String {
    format!("\"{}\"", updated_at.unix_timestamp_nanos() / 1000)
}

/// True if an If-None-Match has the ETag. A value that cannot be read has none.
///
/// Own code, because libraries compare whole tags. Proxies that compress answers (Apache's mod_deflate
/// and mod_brotli, Caddy) add a suffix to the tag and do not remove it again.
pub(super) fn has_etag(headers: &HeaderMap, etag: &str) -> bool {
    let tag = etag.trim_matches('"').as_bytes();
    let mut lines = headers.get_all(IF_NONE_MATCH).iter();
    lines.any(|line| has_tag(line.as_bytes().trim_ascii(), tag))
}

fn has_tag(line: &[u8], tag: &[u8]) -> bool {
    let mut rest = line;
    loop {
        while let [b' ' | b'\t' | b',', after @ ..] = rest {
            rest = after;
        }
        rest = rest.strip_prefix(b"W/").unwrap_or(rest);
        let Some(quoted) = rest.strip_prefix(b"\"") else {
            return line == b"*";
        };
        let Some(end) = quoted.iter().position(|byte| *byte == b'"') else {
            return false;
        };
        if is_tag(&quoted[..end], tag) {
            return true;
        }
        rest = &quoted[end + 1..];
    }
}

/// True for the tag, and for the tag with the name of an encoding.
fn is_tag(held: &[u8], tag: &[u8]) -> bool {
    match held.strip_prefix(tag) {
        Some([]) => true,
        // Tags are digits, so no tag is the start of another one with a hyphen.
        Some([b'-', encoding @ ..]) => {
            let is_letter = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'-';
            !encoding.is_empty() && encoding.iter().all(is_letter)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderValue;

    use super::*;

    fn held(lines: &[&str]) -> bool {
        let values = lines
            .iter()
            .map(|line| HeaderValue::from_str(line).unwrap());
        let headers: HeaderMap = values.map(|value| (IF_NONE_MATCH, value)).collect();
        has_etag(&headers, "\"17\"")
    }

    #[test]
    fn a_tag_is_found_at_any_place_and_with_the_suffix_of_a_proxy() {
        for lines in [
            &["\"17\""][..],
            &["W/\"17\""],
            &["*"],
            &[" \"a,b\" ,, W/\"c\"\t, \"17\" "],
            &["\"17-gzip\""],
            &["W/\"17-br\""],
            &["\"17--gzip\""],
            &["\"16\"", "\"17-zstd\""],
            &["nonsense", "\"17\""],
        ] {
            assert!(held(lines), "{lines:?}");
        }
        for lines in [
            &[][..],
            &[""],
            &["17"],
            &["\"17"],
            &["\"1\""],
            &["\"170\""],
            &["\"017\""],
            &["\"17-\""],
            &["\"17-2\""],
            &["\"17gzip\""],
            &["w/\"17\""],
            &["\"16\", *"],
            &["\"x\" \"y, \"17"],
        ] {
            assert!(!held(lines), "{lines:?}");
        }
    }
}
