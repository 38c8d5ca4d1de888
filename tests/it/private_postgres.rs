//! The private Postgres: nothing outlives its owner, nothing half-made is used.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use openim_group_mirror::local_postgres::{Error, STOP_TIMEOUT, Search, Server};
use sqlx::{Connection, Executor, PgConnection};

use crate::support::{own_server, run, search, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// Stands for the cargo of a test run. It ends with this process: `read` ends with our pipe.
fn stand_in() -> std::process::Child {
    Command::new("sh")
        .args(["-c", "read -r _"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap()
}

/// However a test run ends, by a panic, an abort or a kill, its cargo is gone in the end.
#[tokio::test]
async fn a_throwaway_server_and_its_files_are_gone_when_its_run_is() {
    let mut run_process = stand_in();
    let pid = run_process.id();
    let dir = run().folder("throwaway").join("pg");
    let start = {
        let dir = dir.clone();
        move || Server::throwaway(&dir, pid, &search())
    };
    let first = tokio::task::spawn_blocking(start.clone())
        .await
        .unwrap()
        .unwrap();
    let second = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    // Both are the same server.
    let mut one = PgConnection::connect(&first.url("postgres")).await.unwrap();
    let mut two = PgConnection::connect(&second.url("postgres"))
        .await
        .unwrap();
    one.execute("create table t ()").await.unwrap();
    two.execute("drop table t").await.unwrap();

    // Every process of the server holds this.
    let lock = std::fs::File::open(dir.join("pg.lock")).unwrap();
    assert!(lock.try_lock().is_err());
    run_process.kill().unwrap();
    run_process.wait().unwrap();
    wait_for("the folder is deleted", SOON, || !dir.exists());
    assert!(one.ping().await.is_err());
    wait_for("its processes are gone", SOON, || lock.try_lock().is_ok());
}

#[tokio::test]
async fn a_durable_server_syncs_to_the_disk_and_listens_on_its_socket_only() {
    let server = own_server("durable").await;
    let mut connection = PgConnection::connect(&server.url("postgres"))
        .await
        .unwrap();
    for (setting, expected) in [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("listen_addresses", ""),
        ("server_encoding", "UTF8"),
    ] {
        let value: String = sqlx::query_scalar("select current_setting($1)")
            .bind(setting)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(value, expected, "{setting}");
    }
}

#[tokio::test]
async fn a_folder_of_any_name_will_do() {
    for name in ["a, b", "50% \"é\" $HOME `x` 'y'", &"long".repeat(30)] {
        let dir = run().folder("odd").join(name);
        let start = move || Server::start(&dir, &search());
        let server = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
        let url = server.url("postgres");
        PgConnection::connect(&url).await.unwrap();
        // A path that is too long for a socket gets a short one elsewhere, while the server runs.
        let socket_dir = url.split("host=").nth(1).unwrap().replace("%2F", "/");
        drop(server);
        assert!(!socket_dir.starts_with("/tmp/pg-") || !Path::new(&socket_dir).exists());
    }
}

#[test]
fn an_open_folder_is_no_place_for_a_server_without_passwords() {
    let dir = run().folder("open");
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
    let error = Server::start(&dir, &search()).unwrap_err().to_string();
    assert!(
        error.contains("must be a directory owned by uid"),
        "{error}"
    );
    assert!(error.contains("with mode 700"), "{error}");
}

#[test]
fn a_cluster_of_another_major_version_is_left_alone() {
    let dir = run().folder("version").join("pg");
    Server::start(&dir, &search())
        .unwrap()
        .stop(STOP_TIMEOUT)
        .unwrap();
    let version = dir.join("data/PG_VERSION");
    let made_by = std::fs::read_to_string(&version).unwrap();
    std::fs::write(&version, "9\n").unwrap();
    let error = Server::start(&dir, &search()).unwrap_err();
    assert!(
        matches!(&error, Error::OtherVersion { made, .. } if made == "9"),
        "{error}"
    );
    assert!(
        error.to_string().contains("move the data with pg_dump"),
        "{error}"
    );
    std::fs::write(&version, made_by).unwrap();
    Server::start(&dir, &search()).unwrap();
}

#[test]
fn an_initdb_that_was_cut_off_is_begun_again() {
    let dir = run().folder("half").join("pg");
    Server::start(&dir, &search())
        .unwrap()
        .stop(STOP_TIMEOUT)
        .unwrap();
    std::fs::rename(dir.join("data"), dir.join("data.new")).unwrap();
    std::fs::remove_file(dir.join("data.new/global/pg_control")).unwrap();
    Server::start(&dir, &search()).unwrap();
}

#[test]
fn without_programs_it_says_so() {
    let nowhere = Search {
        bin_dir: Some(run().folder("nowhere")),
        path: vec![],
    };
    let error = Server::start(&run().folder("none").join("pg"), &nowhere).unwrap_err();
    assert!(matches!(error, Error::NotInstalled), "{error}");
}
