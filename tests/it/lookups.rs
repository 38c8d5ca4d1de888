//! Reads of single members that wait at the same moment.

use futures_util::future::join_all;
use serde_json::json;
use sqlx::Executor;

use crate::support::{TestApp, TestDb, until};

#[tokio::test]
async fn those_that_wait_are_one_statement_and_each_gets_its_own_answer() {
    let app = TestApp::start_on(TestDb::new().await, |config| {
        // Four for reads, so that it is not the connections that they wait for.
        config.database.pool_size = 7;
    })
    .await;
    for n in 0..10 {
        app.set("g", &format!("u{n}"), json!({"nickName": format!("n{n}")}))
            .await;
    }
    let mut holder = app.db.pool.begin().await.unwrap();
    holder
        .execute("lock table group_members in access exclusive mode")
        .await
        .unwrap();
    // A third of them are no members, and each is asked for twice.
    let gets = (0..30).map(async |n: usize| {
        let reply = app.get(&format!("/groups/g/members/u{}", n % 15)).await;
        (n % 15, reply)
    });
    let query = json!({"pairs": [
        {"groupID": "g", "userID": "u3"}, {"groupID": "g", "userID": "nobody"},
        {"groupID": "h", "userID": "u3"}, {"groupID": "g", "userID": "u3"},
    ]});
    let query = app.post("/memberships/query", query.to_string());
    let locked = "select query from pg_stat_activity where datname = current_database()
                  and wait_event_type = 'Lock'";
    let hold = async |n: u8| app.get(&format!("/groups/g/members/u{n}")).await.ok();
    let waiting = async |statements: usize| {
        until("they wait", async || {
            app.db.rows(locked).await.len() == statements
        })
        .await;
    };
    let all = async {
        waiting(2).await;
        let release = async {
            until("all are there", async || {
                app.metric("http_connections").await >= 33.0
            })
            .await;
            // Two statements are all that there is; everybody else waits for the next.
            assert_eq!(app.db.rows(locked).await.len(), 2);
            holder.rollback().await.unwrap();
        };
        tokio::join!(join_all(gets), query, release)
    };
    // One after the other, or they would be one statement.
    let second = async {
        waiting(1).await;
        tokio::join!(hold(1), all).1
    };
    let (_, (gets, query, ())) = tokio::join!(hold(0), second);
    for (n, reply) in gets {
        if n < 10 {
            let member = reply.ok();
            assert_eq!(member["userID"], format!("u{n}"));
            assert_eq!(member["nickName"], format!("n{n}"));
        } else {
            assert_eq!(
                (reply.status, &reply.body["code"]),
                (404, &json!("member_unknown"))
            );
        }
    }
    let query = query.ok();
    let found: Vec<_> = query["memberships"].as_array().unwrap().iter().collect();
    let is_member: Vec<_> = found.iter().map(|one| &one["isMember"]).collect();
    assert_eq!(is_member, [true, false, false, true]);
    assert_eq!(found[0]["member"]["nickName"], "n3");
    assert_eq!(found[3]["member"]["nickName"], "n3");
}
