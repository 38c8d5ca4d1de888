//! TLS to the database, as libpq has it, and what is said where it does not work.

use std::time::Duration;

use openim_group_mirror::store::{Database, OpenError};
use sqlx::PgConnection;

use crate::support::{Service, TLS, TlsServer, member_info, until, web};

const WAIT: Duration = Duration::from_secs(10);

/// Form of a connection of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Plain,
    Encrypted,
    /// It is not, and what is said has this in it.
    Refused(&'static str),
}

use Is::{Encrypted, Plain, Refused};

/// Connections of the start, and of the pool after it, to the URL.
async fn connection(admin: &mut PgConnection, url: &str) -> Result<Is, OpenError> {
    let database = Database::new(url, "public", 2, WAIT, WAIT)?;
    let store = database.open().await?;
    store.ping().await.unwrap();
    let is_encrypted: bool = sqlx::query_scalar(
        "select ssl from pg_stat_ssl join pg_stat_activity using (pid)
          where application_name = 'openim-group-mirror' and backend_type = 'client backend'
          order by backend_start desc limit 1",
    )
    .fetch_one(admin)
    .await
    .unwrap();
    store.close().await;
    Ok(if is_encrypted { Encrypted } else { Plain })
}

#[track_caller]
fn assert_is(expected: Is, found: Result<Is, OpenError>, what: &str) {
    match (expected, found) {
        (Refused(said), Err(error)) => {
            let error = error.to_string();
            assert!(error.contains(said), "{what}: {error}");
        }
        (expected, found) => assert_eq!(found.ok(), Some(expected), "{what}"),
    }
}

const VERSION: Is = Refused("by TLS: the server's certificate is of X.509 version 1 or 2");
const EXPIRED: Is = Refused("by TLS: the server's certificate has expired");
const OTHER_HOST: Is = Refused("by TLS: the server's certificate is not for the host 127.0.0.1");
const UNKNOWN: Is = Refused("by TLS: the issuer of the server's certificate is not known here");
const AUTHORITY: Is = Refused("by TLS: the server's certificate is that of an authority");

#[tokio::test]
async fn each_sslmode_judges_a_certificate_as_far_as_it_asks_for() {
    let server = TlsServer::start("good").await;
    let mut admin = server.connect().await;
    // As prefer, require, verify-ca, verify-full have it.
    for (certificate, root, expected) in [
        ("good", "ca", [Encrypted, Encrypted, Encrypted, Encrypted]),
        ("version_1", "ca", [Plain, VERSION, VERSION, VERSION]),
        ("expired", "ca", [Encrypted, Encrypted, EXPIRED, EXPIRED]),
        (
            "other_host",
            "ca",
            [Encrypted, Encrypted, Encrypted, OTHER_HOST],
        ),
        (
            "common_name",
            "ca",
            [Encrypted, Encrypted, Encrypted, OTHER_HOST],
        ),
        (
            "self_signed",
            "ca",
            [Encrypted, Encrypted, UNKNOWN, UNKNOWN],
        ),
        (
            "self_signed",
            "self_signed",
            [Encrypted, Encrypted, Encrypted, Encrypted],
        ),
        (
            "authority",
            "authority",
            [Encrypted, Encrypted, AUTHORITY, AUTHORITY],
        ),
    ] {
        server.show(certificate).await;
        let root = format!("sslrootcert={TLS}/{root}.crt");
        let [prefer, require, verify_ca, verify_full] = expected;
        for (parameters, expected) in [
            ("sslmode=disable".to_owned(), Plain),
            ("sslmode=allow".to_owned(), Plain),
            (String::new(), prefer),
            ("sslmode=prefer".to_owned(), prefer),
            ("sslmode=require".to_owned(), require),
            (format!("sslmode=verify-ca&{root}"), verify_ca),
            (format!("sslmode=verify-full&{root}"), verify_full),
            // As libpq has it: whoever names an issuer wants it to be the issuer.
            (format!("sslmode=require&{root}"), verify_ca),
        ] {
            let found = connection(&mut admin, &server.url(&parameters)).await;
            assert_is(expected, found, &format!("{certificate}, {parameters}"));
        }
    }
}

#[tokio::test]
async fn prefer_and_allow_try_the_other_way_where_the_server_lets_in_nobody_else() {
    let server = TlsServer::start("good").await;
    let mut admin = server.connect().await;
    for (certificate, lines, expected) in [
        // As disable, allow, prefer, require have it.
        (
            "good",
            "hostssl all all 127.0.0.1/32 trust",
            [Refused("pg_hba.conf"), Encrypted, Encrypted, Encrypted],
        ),
        (
            "good",
            "hostnossl all all 127.0.0.1/32 trust",
            [Plain, Plain, Plain, Refused("pg_hba.conf")],
        ),
        (
            "good",
            "host all all 127.0.0.1/32 reject",
            [Refused("pg_hba.conf"); 4],
        ),
        (
            "version_1",
            "hostssl all all 127.0.0.1/32 trust",
            [
                Refused("pg_hba.conf"),
                Refused("pg_hba.conf"),
                VERSION,
                VERSION,
            ],
        ),
    ] {
        server.show(certificate).await;
        server.let_in(lines).await;
        let modes = ["disable", "allow", "prefer", "require"];
        for (mode, expected) in modes.into_iter().zip(expected) {
            let url = server.url(&format!("sslmode={mode}"));
            let found = connection(&mut admin, &url).await;
            assert_is(expected, found, &format!("{certificate}, {lines}, {mode}"));
        }
    }
    // A Unix socket has no TLS, and libpq does not ask for it there.
    for mode in ["require", "verify-full"] {
        let url = server.socket_url(&format!("sslmode={mode}"));
        assert_is(Plain, connection(&mut admin, &url).await, mode);
    }
}

#[test]
fn a_file_for_tls_that_cannot_be_read_ends_the_start() {
    for (parameters, said) in [
        (
            "sslmode=verify-full&sslrootcert=/nowhere/ca.crt",
            "DATABASE_URL: sslrootcert: cannot read /nowhere/ca.crt: ",
        ),
        (
            "sslmode=require&sslrootcert=/nowhere/ca.crt",
            "DATABASE_URL: sslrootcert: cannot read /nowhere/ca.crt: ",
        ),
        (
            "sslcert=/nowhere/a.crt&sslkey=/nowhere/a.key",
            "DATABASE_URL: sslcert: cannot read /nowhere/a.crt: ",
        ),
    ] {
        let url = format!("postgres://u:secret@127.0.0.1:1/db?{parameters}");
        let ended = Service::to_end(&[], &[("DATABASE_URL", &url)]);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
        assert!(!ended.stderr.contains("secret"), "{}", ended.stderr);
    }
}

async fn status(service: &Service, path: &str) -> u16 {
    let answer = web::get(format!("{}{path}", service.base)).await.unwrap();
    answer.status().as_u16()
}

#[tokio::test]
async fn the_start_says_what_is_wrong_with_a_certificate_and_goes_on_when_it_is_put_right() {
    let server = TlsServer::start("version_1").await;
    let url = server.url("sslmode=require");
    let start = move || Service::start(&[("DATABASE_URL", &url), ("RUST_LOG", "debug")]);
    let service = tokio::task::spawn_blocking(start).await.unwrap();
    let said = "by TLS: the server's certificate is of X.509 version 1 or 2, and only version 3 can be \
                read here; give the server one of version 3";
    assert!(service.log().contains(said), "{}", service.log());
    assert_eq!(status(&service, "/readyz").await, 503);
    assert_eq!(status(&service, "/readyz?for=reads").await, 503);
    assert_eq!(status(&service, "/readyz?for=callbacks").await, 200);
    let url = format!("{}/callbackAfterSetGroupMemberInfoCommand", service.base);
    let request = web::client().build().unwrap().post(url);
    let body = member_info("g", "u", serde_json::json!({}));
    let request = request
        .header("content-type", "application/json")
        .body(body);
    assert_eq!(request.send().await.unwrap().status(), 200);
    server.show("good").await;
    until("the callback is there", async || {
        status(&service, "/groups/g/members/u").await == 200
    })
    .await;
    assert_eq!(status(&service, "/readyz").await, 200);
}

#[tokio::test]
async fn prefer_says_once_that_it_does_without_tls() {
    let server = TlsServer::start("version_1").await;
    let url = server.url("");
    let start = move || Service::start(&[("DATABASE_URL", &url)]);
    let service = tokio::task::spawn_blocking(start).await.unwrap();
    assert_eq!(status(&service, "/readyz").await, 200);
    // The start and the pool have connected.
    assert_eq!(status(&service, "/groups/g/members").await, 200);
    let log = service.log();
    let lines = log.matches("the connections to the database are not encrypted");
    assert_eq!(lines.count(), 1, "{log}");
    assert!(log.contains("X.509 version 1"), "{log}");
}
