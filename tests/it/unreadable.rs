//! Answers that OpenIM cannot give, or gives in part: too large for its services, without rows that its caches have
//! lost, groups without an owner, services that are away. The rest is compared, and no member is removed for it.

use std::time::{Duration, Instant};

use openim_group_mirror::domain::GroupId;
use openim_group_mirror::openim::Client;
use openim_group_mirror::reconcile::{DriftEntry, Mode, ReconcileParts, Reconciler, Report};
use openim_group_mirror::store::RunCounts;
use openim_group_mirror::telemetry::Metrics;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::model;
use crate::support::{Creation, Operation, Pair, RestFault, Values, access, settings};

const GROUP: &str = "g";
const LIST: &str = "/group/get_group_member_list";
const GROUPS: &str = "/group/get_groups";
const SINGLY: &str = "/group/get_incremental_group_members";
const BATCH: &str = "/group/get_incremental_group_members_batch";
/// Bytes of an answer: about sixty members, or forty groups.
const CAP: usize = 20_000;

fn ex(user: &str, bytes: usize) -> Operation {
    let values: Values = [("ex", json!("x".repeat(bytes)))].into();
    Operation::SetMember(user.to_owned(), values)
}

fn invite(user: &str) -> Operation {
    Operation::Invite(user.to_owned())
}

fn kick(user: &str) -> Operation {
    Operation::Kick(vec![user.to_owned()])
}

fn notice(bytes: usize) -> Operation {
    Operation::SetProfileEx([("notification", json!("n".repeat(bytes)))].into())
}

/// The owner goes, as only an administrator's request can have it.
fn orphan() -> Operation {
    Operation::SetMember("boss".to_owned(), [("roleLevel", json!(20))].into())
}

fn users(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("u{n:04}")).collect()
}

fn create(pair: &Pair, group: &str, members: &[String]) {
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let creation = Creation::open("Kayaks", "boss", &members);
    pair.act(group, &Operation::Create(creation));
}

/// A group of `boss` and so many, compared.
async fn pair_of(count: usize) -> Pair {
    let pair = Pair::new().await;
    create(&pair, GROUP, &users(count));
    pair.cycle().await;
    pair.assert_equal().await;
    pair
}

fn cap(pair: &Pair, bytes: usize) {
    pair.openim().largest_answer = Some(bytes);
}

async fn whole(pair: &Pair) -> RunCounts {
    pair.compare(&[GROUP], Mode::default()).await.unwrap()
}

/// The counts, and what is told of groups that were left.
async fn told(pair: &Pair, groups: &[&str]) -> (RunCounts, Vec<(Option<String>, String)>) {
    let report = Report::default();
    let never = CancellationToken::new();
    let groups: Vec<GroupId> = groups
        .iter()
        .map(|group| GroupId::parse((*group).into()).unwrap())
        .collect();
    let compared = pair
        .reconciler
        .reconcile(&groups, Mode::default(), &report, &never);
    compared.await.unwrap();
    let left = report.skipped().into_iter();
    let left = left.map(|(group, why)| (group.map(|group| group.as_str().to_owned()), why));
    (report.counts(), left.collect())
}

async fn ex_of(pair: &Pair, user: &str) -> usize {
    let member = pair.member(GROUP, user).await.unwrap();
    assert_eq!(member["is_gone"], false);
    member["ex"].as_str().unwrap_or_default().len()
}

/// 400 avatars of 12 KB as data URLs are more than an answer of patch.16, though none is.
#[tokio::test]
async fn members_who_are_too_many_for_an_answer_are_read_in_smaller_pages() {
    let pair = pair_of(400).await;
    for user in users(400) {
        pair.act(GROUP, &ex(&user, 400));
    }
    cap(&pair, CAP);
    pair.server.reset_calls();
    let result = pair.cycle().await;
    assert_eq!((result.groups_compared, result.groups_left), (1, 0));
    pair.assert_equal().await;
    // 17 pages of 25 are the most that it gives.
    assert!(pair.server.calls()[LIST] <= 27, "{:?}", pair.server.calls());
    assert_eq!(pair.cycle().await.groups_compared, 0);
    pair.close().await;
}

/// Two members of whom each is more than any answer.
#[tokio::test]
async fn members_who_are_too_large_stay_as_they_are_and_the_others_are_compared() {
    let pair = pair_of(300).await;
    for user in ["u0007", "u0123"] {
        pair.act(GROUP, &ex(user, CAP));
    }
    pair.act(GROUP, &ex("u0008", 5));
    pair.act(GROUP, &invite("new"));
    pair.act(GROUP, &kick("u0299"));
    cap(&pair, CAP);
    let (result, left) = told(&pair, &[]).await;
    assert_eq!((result.groups_compared, result.groups_left), (1, 1));
    assert_eq!((result.members_added, result.members_removed), (1, 1));
    let why = "2 members are too large for an answer of OpenIM";
    assert_eq!(left, [(Some(GROUP.to_owned()), why.to_owned())]);
    assert_eq!(ex_of(&pair, "u0007").await, 0);
    assert_eq!(ex_of(&pair, "u0008").await, 5);
    // It is not taken for compared.
    let result = pair.cycle().await;
    assert_eq!((result.groups_compared, result.groups_left), (1, 1));
    pair.act(GROUP, &ex("u0007", 7));
    pair.act(GROUP, &kick("u0123"));
    let result = pair.cycle().await;
    assert_eq!((result.groups_left, result.members_removed), (0, 1));
    assert_eq!(ex_of(&pair, "u0007").await, 7);
    pair.assert_equal().await;
    assert_eq!(pair.cycle().await.groups_compared, 0);
    pair.close().await;
}

/// Then nobody knows who it is that OpenIM cannot give, and so nobody is taken for gone.
#[tokio::test]
async fn where_the_ids_are_too_large_too_nobody_is_taken_for_gone() {
    let pair = pair_of(1500).await;
    pair.act(GROUP, &ex("u0007", CAP));
    pair.act(GROUP, &ex("u0008", 5));
    pair.act(GROUP, &kick("u0299"));
    // Ids are 8 bytes each.
    cap(&pair, 11_000);
    let result = whole(&pair).await;
    assert_eq!((result.groups_left, result.members_removed), (1, 0));
    assert_eq!(ex_of(&pair, "u0008").await, 5);
    assert_eq!(pair.member(GROUP, "u0299").await.unwrap()["is_gone"], false);
    cap(&pair, 1 << 20);
    assert_eq!(whole(&pair).await.members_removed, 1);
    pair.assert_equal().await;
    pair.close().await;
}

/// Also where not one of them can be read.
#[tokio::test]
async fn a_list_that_cannot_be_read_at_all_comes_to_its_end() {
    let pair = pair_of(30).await;
    pair.server.fail_until_told(LIST, RestFault::ErrCode(8));
    let begun = Instant::now();
    let result = whole(&pair).await;
    assert_eq!((result.groups_left, result.members_removed), (1, 0));
    assert!(begun.elapsed() < Duration::from_secs(10));
    pair.server.stop_failing();
    for user in users(30) {
        pair.act(GROUP, &ex(&user, 2000));
    }
    pair.act(GROUP, &ex("boss", 2000));
    cap(&pair, 1500);
    let (result, left) = told(&pair, &[GROUP]).await;
    assert_eq!((result.groups_left, result.members_removed), (1, 0));
    assert!(left[0].1.starts_with("31 members"), "{left:?}");
    pair.close().await;
}

#[tokio::test]
async fn changes_that_are_too_large_are_taken_from_the_list() {
    let pair = pair_of(60).await;
    for user in users(60) {
        pair.act(GROUP, &ex(&user, 600));
    }
    cap(&pair, CAP);
    let result = pair.cycle().await;
    assert_eq!((result.groups_compared, result.groups_left), (1, 0));
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn changes_of_many_groups_that_are_too_large_together_are_asked_for_in_parts() {
    let pair = Pair::new().await;
    let names: Vec<String> = (0..60).map(|n| format!("g{n:02}")).collect();
    for name in &names {
        create(&pair, name, &users(3));
    }
    pair.cycle().await;
    for name in &names {
        pair.act(name, &ex("u0001", 1000));
    }
    // One whose changes are too large alone.
    for user in users(3) {
        pair.act("g30", &ex(&user, CAP / 3));
    }
    cap(&pair, CAP);
    pair.server.reset_calls();
    let result = pair.cycle().await;
    assert_eq!((result.groups_compared, result.groups_left), (60, 0));
    pair.assert_equal().await;
    let calls = pair.server.calls();
    // Of that one alone: its page is too large too.
    assert!(calls[LIST] <= 20, "{calls:?}");
    let changes = (calls[BATCH], calls[SINGLY]);
    assert!(changes.0 <= 20 && changes.1 <= 4, "{calls:?}");
    pair.close().await;
}

#[tokio::test]
async fn groups_that_are_too_many_for_an_answer_are_listed_in_smaller_pages() {
    let pair = Pair::new().await;
    for number in 0..40 {
        let group = format!("g{number:02}");
        create(&pair, &group, &users(2));
        pair.act(&group, &notice(4000));
    }
    cap(&pair, CAP);
    let result = pair.cycle().await;
    assert_eq!((result.groups_compared, result.groups_left), (40, 0));
    pair.assert_equal().await;
    // And when all of them are asked about by their ids.
    for number in 0..40 {
        let group = format!("g{number:02}");
        let dismissed = Operation::Dismiss {
            with_members: false,
        };
        pair.act(&group, &dismissed);
    }
    let accepting = Mode {
        accept_removals: true,
        ..Mode::default()
    };
    let result = pair.compare(&[], accepting).await.unwrap();
    assert_eq!((result.groups_compared, result.groups_left), (40, 0));
    pair.assert_equal().await;
    pair.server.reset_calls();
    assert_eq!(pair.cycle().await.groups_compared, 0);
    pair.close().await;
}

/// Profiles of two groups are larger than any answer: the mirror knows one of the groups.
#[tokio::test]
async fn groups_that_are_too_large_for_the_list_are_told_and_the_others_compared() {
    let pair = Pair::new().await;
    for number in 0..20 {
        create(&pair, &format!("g{number:02}"), &users(2));
    }
    pair.cycle().await;
    pair.act("g05", &notice(CAP));
    pair.act("g05", &invite("new"));
    pair.act("g05", &kick("u0001"));
    pair.act("g06", &invite("new"));
    create(&pair, "unknown", &users(2));
    pair.act("unknown", &notice(CAP));
    cap(&pair, CAP);
    pair.server.reset_calls();
    let (result, left) = told(&pair, &[]).await;
    let calls = pair.server.calls();
    // Once through it.
    assert!(calls[GROUPS] <= 40, "{calls:?}");
    assert_eq!((result.groups_left, left.len()), (2, 2), "{left:?}");
    let (known, unknown) = (&left[0], &left[1]);
    assert_eq!(known.0.as_deref(), Some("g05"));
    let why = "the group's own profile is too large for an answer of OpenIM";
    assert_eq!(known.1, why);
    assert_eq!(unknown.0, None);
    let why = "1 group that is too large for an answer of OpenIM, of those at ";
    assert!(unknown.1.starts_with(why), "{}", unknown.1);
    // Its members were compared all the same.
    assert_eq!((result.members_added, result.members_removed), (2, 1));
    pair.until_check("g05", "read_in_part").await;
    let g05 = "select status, notification from groups where group_id = 'g05'";
    let row = json!({"status": 0, "notification": ""});
    assert_eq!(pair.db.rows(g05).await, [row]);
    assert!(pair.openim().versions_of_nothing.is_empty());
    cap(&pair, 1 << 20);
    assert_eq!(pair.cycle().await.groups_left, 0);
    pair.assert_equal().await;
    pair.close().await;
}

#[tokio::test]
async fn a_group_that_is_dismissed_needs_no_profile_to_be_so() {
    let pair = pair_of(2).await;
    pair.act(GROUP, &notice(CAP));
    pair.act(
        GROUP,
        &Operation::Dismiss {
            with_members: false,
        },
    );
    cap(&pair, CAP);
    let result = pair.cycle().await;
    assert_eq!((result.groups_compared, result.groups_left), (1, 0));
    pair.assert_equal().await;
    pair.close().await;
}

/// Makes one small call for each, and asks for no list.
#[tokio::test]
async fn a_group_without_an_owner_that_has_not_changed_is_not_read() {
    let pair = Pair::new().await;
    for number in 0..6 {
        create(&pair, &format!("owned{number}"), &users(3));
        let group = format!("orphan{number}");
        create(&pair, &group, &users(3));
        pair.act(&group, &orphan());
    }
    pair.cycle().await;
    pair.assert_equal().await;
    pair.server.reset_calls();
    let result = pair.cycle().await;
    assert_eq!((result.groups_compared, result.groups_left), (0, 0));
    let calls = pair.server.calls();
    assert_eq!((calls[SINGLY], calls[BATCH]), (6, 1), "{calls:?}");
    assert_eq!(calls.get(LIST), None);
    // What changes is found, in this one and in no other.
    pair.act("orphan3", &invite("new"));
    pair.act("owned3", &invite("new"));
    pair.server.reset_calls();
    let result = pair.cycle().await;
    assert_eq!((result.groups_compared, result.members_added), (2, 2));
    assert_eq!(pair.server.calls()[LIST], 1);
    pair.assert_equal().await;
    assert_eq!(pair.cycle().await.groups_compared, 0);
    assert!(pair.openim().versions_of_nothing.is_empty());
    pair.close().await;
}

/// It spoils the batch that it is in, for the mirror has not heard of it.
#[tokio::test]
async fn a_group_that_has_lost_its_owner_spoils_nothing_for_the_others() {
    let pair = Pair::new().await;
    for number in 0..8 {
        create(&pair, &format!("g{number}"), &users(3));
    }
    pair.cycle().await;
    pair.act("g1", &invite("new"));
    pair.server.on_call(move |path, _, openim| {
        // Between the list of groups and the batch.
        if path == BATCH && openim.groups["g3"].owner().is_some() {
            openim.apply("g3", &orphan()).unwrap();
        }
    });
    pair.server.reset_calls();
    let result = pair.cycle().await;
    let calls = pair.server.calls();
    assert_eq!(result.groups_compared, 2, "{calls:?}");
    assert_eq!(calls[LIST], 1, "{calls:?}");
    pair.assert_equal().await;
    pair.close().await;
}

/// The ids are those of before, and the version of after: it is read again.
#[tokio::test]
async fn a_group_without_an_owner_that_changes_while_it_is_read_is_read_again() {
    let pair = Pair::new().await;
    create(&pair, GROUP, &users(3));
    pair.act(GROUP, &orphan());
    let mut left = 1;
    pair.server.on_call(move |path, _, openim| {
        if path == LIST && left > 0 {
            left -= 1;
            openim.apply(GROUP, &ex("u0001", 3)).unwrap();
            openim.apply(GROUP, &invite("new")).unwrap();
        }
    });
    let result = whole(&pair).await;
    assert_eq!(result.groups_left, 0);
    pair.assert_equal().await;
    pair.server.on_call(|_, _, _| {});
    assert_eq!(pair.cycle().await.groups_compared, 0);
    let mut number = 0;
    pair.server.on_call(move |path, _, openim| {
        if path == LIST {
            number += 1;
            openim.apply(GROUP, &invite(&format!("n{number}"))).unwrap();
        }
    });
    let (_, left) = told(&pair, &[GROUP]).await;
    assert_eq!(left[0].1, "it changes faster than it can be read");
    pair.close().await;
}

/// Case 84. An invitation that fails half-way leaves somebody whom OpenIM counts and does not show.
async fn with_somebody_unshown(pair: &Pair) {
    let client = model::Client::new(&pair.server).await;
    pair.act(GROUP, &kick("u0002"));
    // Somebody looks for one who is not there.
    let info = json!({"groupID": GROUP, "userIDs": ["u0002", "stranger"]});
    client.data("/group/get_group_members_info", info).await;
    let all = ["u0002", "stranger", "u0001"].map(str::to_owned);
    pair.act(GROUP, &Operation::InviteAll(all.into()));
    // And the next change makes it show in the ids.
    pair.act(GROUP, &invite("new"));
}

#[tokio::test]
async fn who_is_counted_and_not_shown_stays_and_the_others_are_compared() {
    for is_orphan in [false, true] {
        let pair = pair_of(4).await;
        with_somebody_unshown(&pair).await;
        pair.act(GROUP, &kick("u0003"));
        pair.act(GROUP, &ex("u0000", 9));
        if is_orphan {
            pair.act(GROUP, &orphan());
        }
        let begun = Instant::now();
        let (result, left) = told(&pair, &[GROUP]).await;
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(result.groups_left, 1);
        let why = "OpenIM counts 6 members and gives rows of 4";
        assert_eq!(left, [(Some(GROUP.to_owned()), why.to_owned())]);
        assert_eq!((result.members_added, result.members_removed), (1, 1));
        assert_eq!(ex_of(&pair, "u0000").await, 9);
        // Known to the mirror, and in the ids.
        let kept = pair.member(GROUP, "u0002").await.unwrap();
        assert_eq!(kept["is_gone"], false);
        // Nothing is known of this one.
        assert_eq!(pair.member(GROUP, "stranger").await, None);
        let gone = pair.member(GROUP, "u0003").await.unwrap();
        assert_eq!(gone["is_gone"], true);
        // No version says that it is as in OpenIM.
        assert_eq!(pair.cycle().await.groups_left, 1);
        pair.openim().entries_expire();
        assert_eq!(pair.cycle().await.groups_left, 0);
        pair.assert_equal().await;
        assert_eq!(pair.cycle().await.groups_compared, 0);
        pair.close().await;
    }
}

/// A dry run tells the difference of those who are shown, and that it is not all.
#[tokio::test]
async fn a_dry_run_does_not_tell_of_who_is_not_shown() {
    let pair = pair_of(4).await;
    with_somebody_unshown(&pair).await;
    let (mut users, report) = (vec![], Report::default());
    let mut tell = |drift: DriftEntry| users.extend(drift.user_id);
    let looked = pair.reconciler.dry_run(&[], &report, &mut tell).await;
    looked.unwrap();
    let users: Vec<&str> = users.iter().map(|user| user.as_str()).collect();
    assert_eq!(users, ["new"]);
    assert_eq!(report.counts().groups_left, 1);
    pair.close().await;
}

/// It is looked at again.
#[tokio::test]
async fn a_group_that_is_compared_in_part_is_marked_until_it_is_whole() {
    let pair = pair_of(4).await;
    pair.act(GROUP, &ex("u0001", CAP));
    cap(&pair, CAP);
    assert_eq!(whole(&pair).await.groups_left, 1);
    pair.until_check(GROUP, "read_in_part").await;
    assert_eq!(whole(&pair).await.groups_left, 1);
    cap(&pair, 1 << 20);
    assert_eq!(whole(&pair).await.groups_left, 0);
    assert_eq!(pair.check(GROUP).await, None);
    pair.assert_equal().await;
    pair.close().await;
}

/// With one who waits only so long for a service that is away.
fn patient_for(mut pair: Pair, patience: Duration) -> Pair {
    let parts = ReconcileParts {
        store: pair.store.clone(),
        ingest: pair.ingest.clone(),
        metrics: Metrics::new().unwrap(),
    };
    let client = Client::new(access(&pair.server), parts.metrics.clone()).unwrap();
    pair.reconciler = Reconciler::new(client.with_away_timeout(patience), settings(), parts);
    pair
}

#[tokio::test]
async fn a_service_that_comes_back_ends_no_comparison() {
    let pair = pair_of(2).await;
    for (code, times) in [(14, 6), (4, 6)] {
        pair.act(GROUP, &invite(&format!("new{code}")));
        let paths = ["get_groups", "_batch", "get_group_member_list"];
        for path in paths {
            pair.server
                .fail_next(path, RestFault::ErrCode(code), times / 3);
        }
        pair.server.expire_tokens();
        let token = "get_admin_token";
        pair.server.fail_next(token, RestFault::ErrCode(code), 1);
        let result = pair.cycle().await;
        assert_eq!(result.groups_left, 0, "{code}");
        pair.assert_equal().await;
    }
    // Longer than other errors are believed to last.
    pair.server.fail_next("", RestFault::ErrCode(14), 6);
    assert_eq!(whole(&pair).await.groups_left, 0);
    pair.close().await;
}

#[tokio::test]
async fn a_service_that_stays_away_ends_the_comparison_and_says_nothing_of_a_group() {
    let patience = Duration::from_millis(500);
    let pair = patient_for(pair_of(2).await, patience);
    let before = pair.rows_as_they_lie().await;
    pair.act(GROUP, &invite("new"));
    let of_groups = [
        "get_groups",
        "get_groups_info",
        "get_group_member_list",
        "get_incremental_group_members",
        "get_incremental_group_members_batch",
    ];
    for (service, paths) in [("group", &of_groups[..]), ("auth", &["get_admin_token"])] {
        for code in [14, 4] {
            pair.server.expire_tokens();
            for path in paths {
                pair.server.fail_until_told(path, RestFault::ErrCode(code));
            }
            for groups in [&[][..], &[GROUP][..]] {
                let begun = Instant::now();
                let ended = pair.compare(groups, Mode::default()).await.unwrap_err();
                assert_eq!(ended.code(), "openim_unavailable");
                let text = ended.to_string();
                let words = format!("OpenIM's {service} service is away");
                assert!(
                    text.contains(&words) && text.contains(&code.to_string()),
                    "{text}"
                );
                assert!(begun.elapsed() >= patience);
                assert!(begun.elapsed() < Duration::from_secs(10));
            }
            pair.server.stop_failing();
        }
    }
    pair.assert_nothing_written_since(&before).await;
    assert_eq!(pair.cycle().await.groups_left, 0);
    pair.assert_equal().await;
    pair.close().await;
}

/// Nobody but this group is away.
#[tokio::test]
async fn a_group_that_takes_its_service_too_long_is_left_and_the_others_go_on() {
    let pair = Pair::new().await;
    for number in 0..3 {
        create(&pair, &format!("g{number}"), &users(2));
    }
    let pair = patient_for(pair, Duration::from_millis(200));
    let server = std::sync::Arc::downgrade(&pair.server);
    pair.server.on_call(move |path, asked: &Value, _| {
        if path == LIST
            && asked["groupID"] == "g1"
            && let Some(server) = server.upgrade()
        {
            server.fail_next(LIST, RestFault::ErrCode(4), 1);
        }
    });
    let result = pair.cycle().await;
    assert_eq!((result.groups_compared, result.groups_left), (2, 1));
    pair.server.on_call(|_, _, _| {});
    pair.close().await;
}
