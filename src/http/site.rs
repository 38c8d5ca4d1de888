//! Whose request a browser sends: what the headers say that no page can choose.

use std::net::{IpAddr, Ipv6Addr};

use headers::HeaderValue;
use poem::Request;
use poem::http::header::{HOST, ORIGIN};
use poem::http::uri::Authority;

/// Every name that the request gives us counts: that of `Host`, and that of a whole URL, which a
/// request to a proxy has.
pub(super) fn names_this_machine(request: &Request) -> bool {
    let hosts = request.headers().get_all(HOST).iter();
    let of_header = hosts.map(|host| Authority::try_from(host.as_bytes()).ok());
    let of_url = request.uri().authority().cloned().map(Some);
    let mut names = of_header.chain(of_url).peekable();
    names.peek().is_some() && names.all(|name| is_local(name.as_ref()))
}

/// Whether a browser sends this for a page of another site. It says so in `Origin` with every POST;
/// a GET without one is harmless, for the page never sees the answer. The docs page's are our own.
pub(super) fn is_from_another_site(request: &Request) -> bool {
    let own = request.headers().get(HOST).map(HeaderValue::as_bytes);
    let mut origins = request.headers().get_all(ORIGIN).iter();
    origins.any(|origin| origin.as_bytes().strip_prefix(b"http://") != own)
}

fn is_local(host: Option<&Authority>) -> bool {
    let Some(host) = host.map(Authority::host) else {
        return false;
    };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let address: Option<IpAddr> = match bare {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => host.parse().ok(),
    };
    host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_hosts(hosts: &[&str]) -> Request {
        let request = Request::builder().uri_str("/groups/g");
        hosts
            .iter()
            .fold(request, |request, host| request.header("host", *host))
            .finish()
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.9.9.9",
            "[::1]",
            "[::1]:8080",
        ] {
            assert!(names_this_machine(&with_hosts(&[host])), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8080",
            "evil.example:127",
            "127.0.0.1@evil.example",
            "10.0.0.1",
            "[::2]",
            "[localhost]",
            "0.0.0.0",
        ] {
            assert!(!names_this_machine(&with_hosts(&[host])), "{host}");
        }
        assert!(!names_this_machine(&with_hosts(&[])));
        assert!(!names_this_machine(&with_hosts(&[
            "localhost",
            "evil.example"
        ])));
    }
}
