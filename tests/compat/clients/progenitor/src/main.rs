//! A backend in Rust with the client of progenitor: prints a line for each check, "ok" or the result instead.

use std::fmt::Debug;

use client::{Client, Error, types};
use futures_util::TryStreamExt;
use reqwest::header::{AUTHORIZATION, ETAG, HeaderMap, HeaderValue};

#[allow(unused_imports, dead_code)]
mod client {
    include!(concat!(env!("OUT_DIR"), "/client.rs"));
}

type Checked = Result<(), Box<dyn std::error::Error>>;

const GROUP: &str = "a/b c";

fn equal<T: PartialEq + Debug>(found: T, expected: T) -> Checked {
    if found == expected {
        return Ok(());
    }
    Err(format!("expected {expected:?}, found {found:?}").into())
}

fn report(name: &str, checked: Checked) {
    match checked {
        Ok(()) => println!("{name} ok"),
        Err(error) => println!("{name} {}", error.to_string().replace('\n', " ")),
    }
}

fn client(url: &str, authorization: String) -> Client {
    let mut headers = HeaderMap::new();
    let value = HeaderValue::try_from(authorization).expect("ASCII");
    headers.insert(AUTHORIZATION, value);
    let http = reqwest::Client::builder()
        .default_headers(headers)
        .no_proxy()
        .build();
    Client::new_with_client(url, http.expect("a client"))
}

/// A problem document has a media type that progenitor takes for bytes.
async fn problem(
    error: Error<client::ByteStream>,
) -> Result<types::Problem, Box<dyn std::error::Error>> {
    let Error::ErrorResponse(answer) = error else {
        return Err(error.to_string().into());
    };
    let parts: Vec<bytes::Bytes> = answer.into_inner_stream().try_collect().await?;
    Ok(serde_json::from_slice(&parts.concat())?)
}

async fn set_name(openim: &Client) -> Result<types::CallbackReply, Error<types::CallbackReply>> {
    let change = types::SetGroupMemberInfo::builder()
        .callback_command(
            types::SetGroupMemberInfoCallbackCommand::CallbackAfterSetGroupMemberInfoCommand,
        )
        .group_id(GROUP)
        .user_id("x+y")
        .nick_name(Some("Ann".to_owned()));
    let reply = openim
        .callback_after_set_group_member_info()
        .body(change)
        .send()
        .await?;
    Ok(reply.into_inner())
}

async fn refused(stranger: &Client) -> Checked {
    match set_name(stranger).await {
        Err(Error::ErrorResponse(reply)) => {
            equal((reply.status().as_u16(), reply.err_code), (401, 5111))
        }
        other => Err(format!("{other:?}").into()),
    }
}

async fn ids(reads: &Client) -> Checked {
    for user in ["x+y", "50%"] {
        let member = reads
            .get_member()
            .group_id(GROUP)
            .user_id(user)
            .send()
            .await?;
        equal(member.user_id.as_str(), user)?;
    }
    let member = reads
        .get_member()
        .group_id(GROUP)
        .user_id("x+y")
        .send()
        .await?;
    equal(member.nick_name.as_deref(), Some("Ann"))?;
    equal(member.display_face_url.as_deref(), None)?;
    equal(member.join_source, None)
}

async fn unchanged(reads: &Client) -> Checked {
    let member = reads
        .get_member()
        .group_id(GROUP)
        .user_id("x+y")
        .send()
        .await?;
    let etag = member.headers()[ETAG].to_str()?.to_owned();
    let again = reads
        .get_member()
        .group_id(GROUP)
        .user_id("x+y")
        .if_none_match(etag);
    match again.send().await {
        Err(Error::UnexpectedResponse(answer)) => equal(answer.status().as_u16(), 304),
        other => Err(format!("{other:?}").into()),
    }
}

async fn no_group(reads: &Client) -> Checked {
    match reads.get_group().group_id("none").send().await {
        Err(error) => equal(problem(error).await?.code.as_str(), "group_unknown"),
        Ok(group) => Err(format!("{group:?}").into()),
    }
}

async fn pages(reads: &Client) -> Checked {
    let (mut users, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut page = reads
            .list_members()
            .group_id(GROUP)
            .limit(std::num::NonZeroU32::MIN);
        if let Some(cursor) = cursor {
            page = page.cursor(cursor);
        }
        let page = page.send().await?.into_inner();
        equal(page.group_id.as_str(), GROUP)?;
        users.extend(page.members.into_iter().map(|member| member.user_id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            return equal(users, ["..", "50%", "x+y"].map(str::to_owned).to_vec());
        }
    }
}

async fn filter(reads: &Client) -> Checked {
    let users: Vec<types::ListMembersUserIdItem> = vec!["x+y".try_into()?, "50%".try_into()?];
    let some = reads
        .list_members()
        .group_id(GROUP)
        .user_id(users)
        .send()
        .await?;
    equal(some.members.len(), 2)?;
    let all = reads
        .list_members()
        .group_id(GROUP)
        .state(types::ListMembersState::All)
        .send()
        .await?;
    equal(all.members.len(), 4)
}

async fn query(reads: &Client) -> Checked {
    let mut pairs: Vec<types::MembershipPair> = Vec::new();
    for user in ["..", "stranger"] {
        pairs.push(
            types::MembershipPair::builder()
                .group_id(GROUP)
                .user_id(user)
                .try_into()?,
        );
    }
    let query = types::MembershipQuery::builder().pairs(pairs);
    let answers = reads
        .query_memberships()
        .body(query)
        .send()
        .await?
        .into_inner()
        .memberships;
    equal(
        answers.iter().map(|answer| answer.is_member).collect(),
        vec![true, false],
    )?;
    equal(answers[1].member.is_none(), true)
}

async fn groups(reads: &Client) -> Checked {
    let page = reads.list_groups_of_user().user_id("50%").send().await?;
    equal(page.user_id.as_str(), "50%")?;
    equal(page.groups[0].group_id.as_str(), GROUP)
}

async fn drift(reads: &Client) -> Checked {
    equal(reads.drift().send().await?.last_run.is_none(), true)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [url, password, token] = given.as_slice() else {
        panic!("usage: URL PASSWORD TOKEN");
    };
    let basic = |password: &str| {
        use base64::Engine;
        let key = base64::engine::general_purpose::STANDARD.encode(format!("openim:{password}"));
        client(url, format!("Basic {key}"))
    };
    let reads = client(url, format!("Bearer {token}"));
    let named = set_name(&basic(password)).await;
    report(
        "callback",
        named
            .map_err(Into::into)
            .and_then(|reply| equal(reply.action_code, 0)),
    );
    report("refused", refused(&basic("wrong")).await);
    report("ids", ids(&reads).await);
    report("unchanged", unchanged(&reads).await);
    report("problem", no_group(&reads).await);
    report("pages", pages(&reads).await);
    report("filter", filter(&reads).await);
    report("query", query(&reads).await);
    report("groups", groups(&reads).await);
    report("drift", drift(&reads).await);
    let dots = reads.list_groups_of_user().user_id("..").send().await;
    println!(
        "dots {}",
        match dots {
            Ok(page) if page.user_id == ".." => "sent",
            Ok(_) => "other",
            Err(Error::InvalidResponsePayload(..)) => "refused",
            Err(_) => "failed",
        }
    );
}
