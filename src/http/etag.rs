//! Entity tags: what tells that a row is as it was.

use poem::http::HeaderMap;
use poem::http::header::IF_NONE_MATCH;
use time::OffsetDateTime;

/// Every change of a served value moves `updated_at` by a microsecond at least, so all its digits
/// make a strong ETag.
pub(super) fn of(updated_at: OffsetDateTime) -> String {
    format!("\"{}\"", updated_at.unix_timestamp_nanos() / 1000)
}

/// Whether any If-None-Match names the ETag; what cannot be read names nothing.
///
/// Own code, because proxies that compress answers on the way (Apache's mod_deflate and mod_brotli,
/// Caddy) add a suffix to the tag and do not take it away again, and libraries compare whole tags.
pub(super) fn is_held(headers: &HeaderMap, etag: &str) -> bool {
    let tag = etag.trim_matches('"').as_bytes();
    let mut lines = headers.get_all(IF_NONE_MATCH).iter();
    lines.any(|line| names(line.as_bytes().trim_ascii(), tag))
}

fn names(line: &[u8], tag: &[u8]) -> bool {
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
        if is_of(&quoted[..end], tag) {
            return true;
        }
        rest = &quoted[end + 1..];
    }
}

/// Whether it is the tag, or the tag and the name of an encoding.
fn is_of(held: &[u8], tag: &[u8]) -> bool {
    match held.strip_prefix(tag) {
        Some([]) => true,
        // Ours are digits, so none is the beginning of another and a hyphen.
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
        is_held(&headers, "\"17\"")
    }

    #[test]
    fn a_tag_is_found_wherever_it_stands_and_whatever_a_proxy_made_of_it() {
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
