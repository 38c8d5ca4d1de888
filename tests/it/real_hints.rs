//! Random histories that are told well, with the messages that tell of every change.

#![expect(clippy::print_stdout, reason = "the seed, and what was counted")]

use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::histories::seed;
use crate::real_histories::{AT_A_TIME, Bed, Setup, histories};
use crate::support::{Creation, Operation, Random, Release, Way, until};

/// From the last operation until the mirror is equal.
const GOAL: Duration = Duration::from_secs(1);

/// At most, for machines that have more to do. `HISTORY_BOUND_MS` is for one that has not.
fn bound() -> Duration {
    let millis = std::env::var("HISTORY_BOUND_MS");
    let millis = millis.map_or(20_000, |millis| millis.parse().expect("a number"));
    Duration::from_millis(millis)
}

/// Equal by looks alone: the only cycle is the one at the start.
async fn equal_at_once(release: Release) {
    let seed = seed();
    println!("hints: HISTORY_SEED={seed}");
    let mut took = vec![];
    let step = usize::try_from(AT_A_TIME).unwrap();
    for start in (0..histories()).step_by(step) {
        let part = start..histories().min(start + AT_A_TIME);
        took.push(equal_after(release, seed, part).await);
    }
    took.sort();
    println!("{release:?}: equal after {took:?}");
}

/// Time from the last operation of some histories until mirror and OpenIM are equal. The histories have an OpenIM of
/// their own: if a user gets another name, it reports a change of each group that shows the name.
async fn equal_after(release: Release, seed: u64, part: Range<u64>) -> Duration {
    let bed = Bed::new(Setup {
        release,
        hints: true,
        api: true,
        partial: false,
        way: Way::GOOD,
    })
    .await;
    bed.compared_once().await;
    bed.pair.server.reset_calls();
    let story = format!("HISTORY_SEED={seed}, {part:?} of {release:?}");
    bed.begin(seed, part).join_all().await;
    let took = until_equal(&bed, &story).await;
    // A callback that comes late may tell what was before, and is looked after.
    bed.delivery.settled().await;
    until_equal(&bed, &story).await;
    let delivered = bed.delivery.delivered();
    println!("{story}: {delivered:?}; equal after {took:?}");
    assert_eq!(delivered.lost + delivered.odd, 0);
    let calls = bed.pair.server.calls();
    assert_eq!(calls.get("/group/get_groups"), None, "{calls:?}");
    let odd = bed.pair.openim().versions_of_nothing.clone();
    assert!(odd.is_empty(), "{odd:?}");
    let drift = bed.pair.drift().await;
    assert!(drift.is_empty(), "{drift:?}");
    bed.close().await;
    took
}

/// Time from now until mirror and OpenIM are equal.
async fn until_equal(bed: &Bed, story: &str) -> Duration {
    let began = Instant::now();
    let mut last = vec![];
    loop {
        let differences = bed.pair.differences().await;
        let late = began.elapsed();
        if differences.is_empty() {
            if late > GOAL {
                println!("{story}: late were {last:#?}\n{}", bed.story_of(&last));
            }
            return late;
        }
        let group = bed.story_of(&differences);
        assert!(late < bound(), "{story}: {differences:#?}\n{group}");
        last = differences;
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_hints_the_mirror_of_patch_16_is_equal_at_once() {
    equal_at_once(Release::Patch16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_hints_the_mirror_of_patch_15_is_equal_at_once() {
    equal_at_once(Release::Patch15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_hints_the_mirror_of_main_is_equal_at_once() {
    equal_at_once(Release::Main).await;
}

/// On the release that tells by no callback who comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_82_who_comes_is_there_within_a_second_of_a_message_that_tells_nobodys_name() {
    let bed = Bed::new(Setup {
        release: Release::Patch16,
        hints: true,
        api: true,
        partial: false,
        way: Way::GOOD,
    })
    .await;
    let random = &mut Random::new(82, 0);
    let mut creation = Creation::open("Kayaks", "boss", &["u1"]);
    let mut does = |operation: &Operation| {
        let told = bed.pair.openim().perform("g", operation).unwrap();
        bed.delivery.tell(told, random);
    };
    creation.profile.insert("ex", json!("x"));
    does(&Operation::Create(creation));
    bed.compared_once().await;
    let ask = |answer| Operation::SetProfileEx([("needVerification", json!(answer))].into());
    for (user, operations) in [
        ("invited", vec![Operation::Invite("invited".into())]),
        ("joined", vec![Operation::Join("joined".into())]),
        (
            "approved",
            vec![
                ask(1),
                Operation::Join("approved".into()),
                Operation::Approve("approved".into()),
            ],
        ),
    ] {
        for operation in &operations {
            does(operation);
        }
        let began = Instant::now();
        until("who comes is there", async || {
            bed.pair.member("g", user).await.is_some()
        })
        .await;
        println!("{user} is there after {:?}", began.elapsed());
        assert!(began.elapsed() < bound());
    }
    until("the mirror is equal", async || {
        bed.pair.differences().await.is_empty()
    })
    .await;
    bed.delivery.settled().await;
    bed.close().await;
}

/// A look has written what the callback says before it comes, and what the callback takes away with it,
/// such as the name that is shown where a member has none of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_callback_takes_away_after_the_look_is_there_again() {
    let bed = Bed::new(Setup {
        release: Release::Patch15,
        hints: true,
        api: true,
        partial: false,
        way: Way::GOOD,
    })
    .await;
    let random = &mut Random::new(83, 0);
    bed.pair.openim().set_user("u1", "Ann", "face");
    let creation = Creation::open("Kayaks", "boss", &["u1", "u2"]);
    let told = bed.pair.openim().perform("g", &Operation::Create(creation));
    bed.delivery.tell(told.unwrap(), random);
    bed.compared_once().await;
    bed.delivery.settled().await;
    let named = |name: &str| {
        let values = [("nickName", json!(name)), ("faceURL", json!(name))];
        Operation::SetMember("u1".into(), values.into())
    };
    for operation in [
        named("Own"),
        named(""),
        Operation::Join("u7".into()),
        Operation::Quit("u7".into()),
        Operation::Join("u7".into()),
        Operation::Kick(vec!["u2".into()]),
    ] {
        let told = bed.pair.openim().perform("g", &operation).unwrap();
        let (messages, callbacks): (Vec<_>, Vec<_>) = told
            .into_iter()
            .partition(|told| told.callback.is_message());
        let is_equal = async || bed.pair.differences().await.is_empty();
        bed.delivery.tell(messages, random);
        bed.delivery.settled().await;
        until(&format!("{operation:?} is seen"), is_equal).await;
        bed.delivery.tell(callbacks, random);
        bed.delivery.settled().await;
        until(&format!("{operation:?} is still seen"), is_equal).await;
    }
    bed.close().await;
}

/// Members in the mirror and in OpenIM, by group. A group with a difference is marked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_api_hints_mark_the_groups_whose_members_are_others() {
    let seed = seed();
    println!("hints: HISTORY_SEED={seed}");
    let bed = Bed::new(Setup {
        release: Release::Patch16,
        hints: true,
        api: false,
        partial: false,
        way: Way::GOOD,
    })
    .await;
    bed.begin(seed, 0..AT_A_TIME).join_all().await;
    bed.delivery.settled().await;
    let wrong = async || {
        let differences = bed.pair.differences().await;
        // Names that are shown, and mutes, are told to nobody.
        let of_role = differences
            .iter()
            .filter(|line| line.contains("\"roleLevel\""));
        let mut wrong: Vec<String> = of_role.cloned().collect();
        for group in marked(&bed).await {
            wrong.retain(|line| !line.contains(&format!("\"{group}\"")));
        }
        wrong
    };
    // A mark of a join waits for 5 s for its callback.
    until("they are marked", async || wrong().await.is_empty()).await;
    bed.close().await;
}

async fn marked(bed: &Bed) -> Vec<String> {
    let sql = "select group_id from groups where check_wanted_since is not null";
    let rows = bed.pair.db.rows(sql).await;
    let id = |row: &Value| row["group_id"].as_str().unwrap().to_owned();
    rows.iter().map(id).collect()
}
