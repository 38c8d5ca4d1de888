//! The docs page as somebody uses it who has never seen the service.

use serde_json::json;

use crate::support::{Browser, COMMAND, TestApp, TestDb};

#[tokio::test(flavor = "multi_thread")]
async fn one_can_authorize_send_the_sample_and_read_it_back_and_no_other_host_is_asked() {
    let Some(mut page) = Browser::start().await else {
        return;
    };
    let app = TestApp::start_on(TestDb::new().await, |config| {
        config.access.callback_passwords = vec!["pass word".to_owned().into()];
        config.access.api_tokens = vec!["token-1".to_owned().into()];
    })
    .await;
    page.open(&format!("{}/docs", app.base)).await;
    let callback = "#operations-Callbacks-callbackAfterSetGroupMemberInfo";
    let member = "#operations-Reads-getMember";

    // Without a token it says what is wanted. (To an unauthorized callback the browser itself would
    // ask for name and password, in a dialog that no page sees.)
    page.click(&format!("{member} .opblock-summary-control"))
        .await;
    page.click(&format!("{member} .try-out__btn")).await;
    page.click(&format!("{member} .execute")).await;
    let status = |operation: &str, status: u16| {
        format!(
            "document.querySelector('{operation} .live-responses-table .response .response-col_status')\
             ?.innerText.startsWith('{status}')"
        )
    };
    page.until(&status(member, 401)).await;

    page.click(".auth-wrapper .authorize").await;
    page.type_into(".auth-container input[name=username]", "openim")
        .await;
    page.type_into(".auth-container input[name=password]", "pass word")
        .await;
    page.click(".modal-ux form:has(input[name=password]) button.authorize")
        .await;
    page.type_into(".auth-container input:not([name])", "token-1")
        .await;
    page.click(".modal-ux form:has(input:not([name])) button.authorize")
        .await;
    page.until(
        "[...document.querySelectorAll('.modal-ux button')]\
         .filter(button => button.innerText == 'Logout').length == 2",
    )
    .await;
    page.click(".modal-ux .btn-done").await;

    // The sample stands there already.
    page.click(&format!("{callback} .opblock-summary-control"))
        .await;
    page.click(&format!("{callback} .try-out__btn")).await;
    page.click(&format!("{callback} .execute")).await;
    page.until(&status(callback, 200)).await;
    let shown = |operation: &str| {
        format!(
            "document.querySelector('{operation} .live-responses-table .response .highlight-code code').innerText"
        )
    };
    let reply = page.evaluate(&shown(callback)).await;
    let reply: serde_json::Value = reply.as_str().unwrap().parse().unwrap();
    assert_eq!(
        reply,
        json!({"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 1})
    );
    let rows = app
        .db
        .rows("select group_id, user_id, nickname, role_level from group_members");
    assert_eq!(
        rows.await,
        [json!({"group_id": "12345", "user_id": "user789", "nickname": "user", "role_level": 20})]
    );

    page.click(&format!("{member} .execute")).await;
    page.until(&status(member, 200)).await;
    let read = page.evaluate(&shown(member)).await;
    let read: serde_json::Value = read.as_str().unwrap().parse().unwrap();
    assert_eq!(read["userID"], "user789");

    // Inlined pictures and scripts are no host.
    let asked: Vec<&String> = page
        .asked_for
        .iter()
        .filter(|url| !url.starts_with("data:"))
        .collect();
    let strangers: Vec<&&String> = asked
        .iter()
        .filter(|url| {
            !url.starts_with("http://127.0.0.1:") && !url.starts_with("blob:http://127.0.0.1:")
        })
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    for path in [
        "/docs".to_owned(),
        format!("/{COMMAND}"),
        "/groups/12345/members/user789".into(),
    ] {
        let url = format!("{}{path}", app.base);
        assert!(asked.contains(&&url), "{url} is not among {asked:?}");
    }
}
