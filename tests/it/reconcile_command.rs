//! `openim-group-mirror reconcile`, as one runs it.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    ADMIN_ID, Creation, Ended, OpenImServer, Operation, RestFault, SECRET, Service, TestDb, until,
    wait_for,
};

/// A model OpenIM, and a database that is the mirror.
struct Stage {
    server: Arc<OpenImServer>,
    db: TestDb,
}

impl Stage {
    async fn new() -> Self {
        Self {
            server: Arc::new(OpenImServer::start().await),
            db: TestDb::new().await,
        }
    }

    fn act(&self, group: &str, operation: &Operation) {
        let mut openim = self.server.openim.lock().unwrap();
        openim.apply(group, operation).unwrap();
    }

    fn create(&self, group: &str, members: &[&str]) {
        let creation = Creation::open("Kayaks", "boss", members);
        self.act(group, &Operation::Create(creation));
    }

    fn variables<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let all = [
            ("DATABASE_URL", self.db.url.as_str()),
            ("OPENIM_API_URL", self.server.url.as_str()),
            ("OPENIM_ADMIN_USER_ID", ADMIN_ID),
            ("OPENIM_SECRET", SECRET),
            ("RECONCILE_DELAY_MS", "50"),
        ];
        all.iter().chain(more).copied().collect()
    }

    fn reconcile(&self, arguments: &[&str]) -> Ended {
        let all: Vec<&str> = ["reconcile"].iter().chain(arguments).copied().collect();
        Service::to_end(&all, &self.variables(&[]))
    }

    async fn last_run(&self) -> Value {
        let sql = "select stopped_by, groups_compared, ended_at is not null as has_ended
                     from reconcile_runs order by id desc limit 1";
        self.db.rows(sql).await.pop().unwrap()
    }
}

fn lines(ended: &Ended) -> Vec<Value> {
    let lines = ended.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn it_fills_an_empty_mirror_and_says_what_it_did() {
    let stage = Stage::new().await;
    stage.create("a", &["u1", "u2"]);
    stage.create("b", &["u1"]);
    let filled = stage.reconcile(&["--json"]);
    assert_eq!(filled.code, Some(0), "{}", filled.stderr);
    let [told] = &lines(&filled)[..] else {
        panic!("{}", filled.stdout);
    };
    assert_eq!(told["groupsSeen"], 2);
    assert_eq!(told["groupsCompared"], 2);
    assert_eq!(told["membersCompared"], 5);
    assert_eq!(told["repairs"]["memberAdded"], 5);
    assert_eq!(told["repairs"]["groupChanged"], 2);
    assert_eq!(told["left"], json!([]));
    // Not on a terminal: how far it is, as lines.
    assert!(
        filled
            .stderr
            .contains("2/2 groups, 5 members compared, 7 rows repaired"),
        "{}",
        filled.stderr
    );
    let again = stage.reconcile(&[]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    let expected = "groups: 2 seen, 0 compared, 0 changed, 0 left as they are; \
                    members: 0 compared, 0 added, 0 removed, 0 changed, 0 with details filled in\n";
    assert!(again.stdout.starts_with(expected), "{}", again.stdout);
    let full = stage.reconcile(&["--full", "--json"]);
    assert_eq!(lines(&full)[0]["groupsCompared"], 2);
    assert_eq!(lines(&full)[0]["repairs"]["memberChanged"], 0);
    let one = stage.reconcile(&["--group", "b", "--group", "nobody knows it", "--json"]);
    assert_eq!(one.code, Some(0), "{}", one.stderr);
    assert_eq!(lines(&one)[0]["membersCompared"], 2);
}

#[tokio::test]
async fn a_dry_run_tells_each_value_that_differs_and_changes_nothing() {
    let stage = Stage::new().await;
    stage.create("a", &["u1", "u2"]);
    assert_eq!(stage.reconcile(&[]).code, Some(0));
    let same = stage.reconcile(&["--dry-run"]);
    assert_eq!((same.code, same.stdout.as_str()), (Some(0), ""));

    stage.act("a", &Operation::Kick(vec!["u1".into()]));
    stage.act("a", &Operation::Invite("u3".into()));
    let admin = [("roleLevel", json!(60)), ("ex", json!("two\nlines"))].into();
    stage.act("a", &Operation::SetMember("u2".into(), admin));
    let name = [("groupName", json!("Canoes"))].into();
    stage.act("a", &Operation::SetProfileEx(name));
    // No drift: nobody tells it.
    stage
        .server
        .openim
        .lock()
        .unwrap()
        .set_user("boss", "The Boss", "");
    let dump = async || {
        let all = "select to_jsonb(m) as row from group_members m
                    union all select to_jsonb(g) from groups g
                    union all select to_jsonb(c) from group_checks c
                    union all select to_jsonb(r) from reconcile_runs r";
        let mut rows: Vec<String> = stage
            .db
            .rows(all)
            .await
            .iter()
            .map(Value::to_string)
            .collect();
        rows.sort();
        rows
    };
    let before = dump().await;
    let drift = stage.reconcile(&["--dry-run", "--json"]);
    assert_eq!(drift.code, Some(1), "{}", drift.stderr);
    assert!(
        drift
            .stderr
            .ends_with("values that are not as in OpenIM: 5\n"),
        "{}",
        drift.stderr
    );
    let mut told = lines(&drift);
    told.sort_by_key(|line| (line["userID"].to_string(), line["field"].to_string()));
    let line = |user: Value, field: &str, mirror: Value, openim: Value| json!({"groupID": "a", "userID": user, "field": field, "mirror": mirror, "openim": openim});
    let expected = [
        line(json!("u1"), "member", json!("present"), Value::Null),
        line(json!("u2"), "ex", json!(""), json!("two\nlines")),
        line(json!("u2"), "roleLevel", json!("20"), json!("60")),
        line(json!("u3"), "member", Value::Null, json!("present")),
        line(Value::Null, "groupName", json!("Kayaks"), json!("Canoes")),
    ];
    assert_eq!(told, expected);
    let text = stage.reconcile(&["--dry-run", "--group", "a"]);
    assert_eq!(text.code, Some(1));
    let expected = r#"group "a", user "u2": ex is "" here, "two\nlines" in OpenIM"#;
    assert!(
        text.stdout.lines().any(|line| line == expected),
        "{}",
        text.stdout
    );
    assert_eq!(dump().await, before);
    assert_eq!(stage.reconcile(&[]).code, Some(0));
    assert_eq!(stage.reconcile(&["--dry-run"]).code, Some(0));
}

/// A difference that is gone at the second look was a callback on its way.
#[tokio::test]
async fn a_difference_that_is_seen_once_is_no_drift() {
    let stage = Stage::new().await;
    stage.create("a", &["u1"]);
    assert_eq!(stage.reconcile(&[]).code, Some(0));
    stage.act("a", &Operation::Invite("u2".into()));
    let mut looks = 0;
    stage.server.on_call(move |path, _, openim| {
        looks += u32::from(path.ends_with("get_group_member_list"));
        // Before the second look, as if the mirror had heard of it.
        if looks == 2 {
            openim
                .apply("a", &Operation::Kick(vec!["u2".into()]))
                .unwrap_or_default();
        }
    });
    let drift = stage.reconcile(&["--dry-run", "--full"]);
    assert_eq!(
        (drift.code, drift.stdout.as_str()),
        (Some(0), ""),
        "{}",
        drift.stderr
    );
}

#[tokio::test]
async fn what_cannot_be_done_is_told_with_another_exit_code() {
    let stage = Stage::new().await;
    let nothing = Service::to_end(&["reconcile"], &[("DATABASE_URL", &stage.db.url)]);
    assert_eq!(nothing.code, Some(2));
    let expected = "OPENIM_API_URL: expected the address of OpenIM's API";
    assert!(nothing.stderr.contains(expected), "{}", nothing.stderr);
    // Three settings that go together, for whatever is asked.
    let half = Service::to_end(
        &["migrate"],
        &[
            ("DATABASE_URL", &stage.db.url),
            ("OPENIM_API_URL", "ftp://x"),
            ("OPENIM_SECRET", SECRET),
        ],
    );
    for expected in [
        "OPENIM_API_URL: expected http://HOST:PORT",
        "OPENIM_ADMIN_USER_ID: expected a value",
    ] {
        assert!(half.stderr.contains(expected), "{}", half.stderr);
    }
    let with = |more: &[(&str, &str)]| {
        Service::to_end(&["reconcile", "--dry-run"], &stage.variables(more))
    };
    let wrong = with(&[("OPENIM_SECRET", "wrong")]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("OPENIM_SECRET"), "{}", wrong.stderr);
    assert!(!wrong.stderr.contains("wrong"), "{}", wrong.stderr);
    let no_database = with(&[("DATABASE_URL", "postgres://x@127.0.0.1:9/x")]);
    assert_eq!(no_database.code, Some(2), "{}", no_database.stderr);
    // Nobody listens there.
    let away = with(&[("OPENIM_API_URL", "http://127.0.0.1:9")]);
    assert_eq!(away.code, Some(2), "{}", away.stderr);
    assert!(
        away.stderr.contains("OpenIM cannot be reached"),
        "{}",
        away.stderr
    );
    let other = with(&[("OPENIM_API_URL", &format!("{}/other", stage.server.url))]);
    assert_eq!(other.code, Some(2), "{}", other.stderr);
    assert!(
        other
            .stderr
            .contains("expected the address of OpenIM's API"),
        "{}",
        other.stderr
    );
}

/// "No difference" of what nobody could look at would be a lie.
#[tokio::test]
async fn groups_that_cannot_be_read_are_told() {
    let stage = Stage::new().await;
    stage.create("a", &["u1"]);
    assert_eq!(stage.reconcile(&[]).code, Some(0));
    let list = "get_group_member_list";
    for arguments in [&["--dry-run"][..], &["--full"]] {
        stage.server.fail_next(list, RestFault::ErrCode(1001), 1);
        let left = stage.reconcile(arguments);
        assert_eq!(left.code, Some(2), "{}", left.stderr);
        let expected = "groups that were left as they are: 1\n";
        assert!(left.stderr.ends_with(expected), "{}", left.stderr);
    }
}

#[tokio::test]
async fn it_stops_at_a_signal_and_goes_on_from_there() {
    let stage = Stage::new().await;
    for number in 0..20 {
        stage.create(&format!("g{number:02}"), &["u1"]);
    }
    // The one that is looked at last hangs.
    let list = "get_group_member_list";
    stage.server.on_call({
        let server = Arc::downgrade(&stage.server);
        let mut calls = 0;
        move |path, _, _| {
            calls += u32::from(path.ends_with(list));
            if path.ends_with(list)
                && calls == 10
                && let Some(server) = server.upgrade()
            {
                server.fail_next(list, RestFault::Hang, 100);
            }
        }
    });
    let arguments = ["reconcile"];
    let variables = stage.variables(&[("RECONCILE_CONCURRENCY", "1")]);
    let mut running = Service::spawn(&arguments, &variables);
    let done = async || {
        let done = "select count(*) as n from group_checks where version is not null";
        stage.db.rows(done).await[0]["n"].as_u64().unwrap()
    };
    until("it hangs", async || {
        stage.server.calls().get("/group/get_group_member_list") == Some(&10)
    })
    .await;
    let begun = std::time::Instant::now();
    running.signal("INT");
    let status = running.ended();
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(status.code(), Some(2), "{}", running.log());
    let run = stage.last_run().await;
    assert_eq!(run["stopped_by"], "stopped");
    let before = done().await;
    assert!((1..20).contains(&before), "{before}");
    stage.server.stop_failing();
    let rest = stage.reconcile(&["--json"]);
    assert_eq!(rest.code, Some(0), "{}", rest.stderr);
    assert_eq!(lines(&rest)[0]["groupsCompared"], 20 - before);
    assert_eq!(done().await, 20);
}

#[tokio::test]
async fn two_at_once_take_turns() {
    let stage = Stage::new().await;
    stage.create("a", &["u1"]);
    let mut held = stage.server.hold("get_group_member_list");
    let first = Service::spawn(&["reconcile"], &stage.variables(&[]));
    held.reached().await;
    let second = Service::spawn(&["reconcile"], &stage.variables(&[]));
    wait_for("the second waits", Duration::from_secs(20), || {
        second.log().contains("another instance reconciles now")
    });
    held.release();
    for mut process in [first, second] {
        assert_eq!(process.ended().code(), Some(0), "{}", process.log());
    }
    assert_eq!(stage.last_run().await["groups_compared"], 0);
}

/// `script` gives the program a terminal.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn on_a_terminal_there_is_a_bar() {
    let stage = Stage::new().await;
    stage.create("a", &["u1"]);
    let held = stage.server.hold("get_group_member_list");
    let program = env!("CARGO_BIN_EXE_openim-group-mirror");
    let mut script = Command::new("script");
    let command = format!("{program} reconcile");
    script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
    let mut script = script
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("TERM", "xterm")
        .envs(stage.variables(&[("COLUMNS", "200")]))
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = script.stdout.take().unwrap();
    let drawn = tokio::task::spawn_blocking(move || {
        let (mut text, mut some) = (String::new(), [0; 4096]);
        while !text.contains("1/1 groups, 0 members compared, 0 rows repaired") {
            let length = output.read(&mut some).unwrap();
            assert!(length > 0, "it ended: {text}");
            text += &String::from_utf8_lossy(&some[..length]);
        }
        (output, text)
    });
    // Where nothing is drawn the call goes on with the test's end, and the program ends.
    let drawn = tokio::time::timeout(Duration::from_secs(20), drawn).await;
    let (mut output, mut text) = drawn.expect("a bar is drawn").unwrap();
    held.release();
    output.read_to_string(&mut text).unwrap();
    assert!(script.wait().unwrap().success(), "{text}");
    assert!(text.contains("members: 2 compared, 2 added"), "{text}");
}
