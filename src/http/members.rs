//! Reads about the members of one group.

use std::sync::Arc;

use poem::Request;
use poem_openapi::param::{Header, Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use serde::Serialize;
use time::OffsetDateTime;

use super::auth::ReadKey;
use super::error::{Code, Error};
use super::etag;
use super::memory::AnswerMemory;
use super::page::{self, Scope};
use super::problem::ReadFailure;
use super::rows::{Answer, Reading};
use super::written::{optional_rfc3339, rfc3339};
use super::{Tag, params};
use crate::domain::UserId;
use crate::store::{Found, MemberFilter, MemberRow, MemberState, Page, Room, Store};

pub(super) struct Members {
    pub(super) store: Store,
    pub(super) memory: Arc<AnswerMemory>,
}

/// A member of a group. null: not known, where nothing else is said; an empty text is a value.
#[derive(Clone, Debug, Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(super) struct Member {
    /// The group.
    #[oai(rename = "groupID")]
    #[serde(rename = "groupID")]
    group_id: String,
    /// The user.
    #[oai(rename = "userID")]
    #[serde(rename = "userID")]
    user_id: String,
    /// Name in this group, as last told; empty: OpenIM shows the name of the user's profile; null:
    /// not known.
    #[oai(nullable)]
    nick_name: Option<String>,
    /// What OpenIM shows: the name in this group or, where that is empty, that of the user's profile;
    /// null where it is not known: the mirror has not been compared with OpenIM, or not since it
    /// changed.
    #[oai(nullable)]
    display_name: Option<String>,
    /// Avatar in this group, as last told; empty: OpenIM shows the avatar of the user's profile; null:
    /// not known.
    #[oai(rename = "faceURL", nullable)]
    #[serde(rename = "faceURL")]
    face_url: Option<String>,
    /// What OpenIM shows: the avatar in this group or, where that is empty, that of the user's
    /// profile; null where it is not known, as for displayName.
    #[oai(rename = "displayFaceURL", nullable)]
    #[serde(rename = "displayFaceURL")]
    display_face_url: Option<String>,
    /// 100 owner, 60 admin, 20 ordinary member; other numbers as OpenIM tells them.
    #[oai(nullable)]
    role_level: Option<i32>,
    /// Extra data.
    #[oai(nullable)]
    ex: Option<String>,
    /// When the member joined; null where that was not heard of.
    #[oai(nullable)]
    #[serde(serialize_with = "optional_rfc3339")]
    joined_at: Option<OffsetDateTime>,
    /// How the member came: 1 by an administrator, 2 invited, 3 by search, 4 by QR code, 0 not noted
    /// by OpenIM; null: not known.
    #[oai(nullable)]
    join_source: Option<i32>,
    /// Who invited the member, as OpenIM has it; null: not known.
    #[oai(rename = "inviterUserID", nullable)]
    #[serde(rename = "inviterUserID")]
    inviter_user_id: Option<String>,
    /// Who let the member in, as OpenIM has it; null: not known.
    #[oai(rename = "operatorUserID", nullable)]
    #[serde(rename = "operatorUserID")]
    operator_user_id: Option<String>,
    /// Until when the member is muted; null: not muted, or not known.
    #[oai(nullable)]
    #[serde(serialize_with = "optional_rfc3339")]
    mute_end_at: Option<OffsetDateTime>,
    /// When the member left, or the group was dismissed; null for a current member.
    #[oai(nullable)]
    #[serde(serialize_with = "optional_rfc3339")]
    left_at: Option<OffsetDateTime>,
    /// When the mirror first heard of the member.
    #[serde(serialize_with = "rfc3339")]
    created_at: OffsetDateTime,
    /// When one of the values above last changed. (A dismissal changes the group.)
    #[serde(serialize_with = "rfc3339")]
    updated_at: OffsetDateTime,
}

impl From<MemberRow> for Member {
    fn from(row: MemberRow) -> Self {
        let MemberRow {
            group_id,
            user_id,
            nickname,
            display_nickname,
            face_url,
            display_face_url,
            role_level,
            ex,
            joined_at,
            join_source,
            inviter_user_id,
            operator_user_id,
            mute_end_at,
            left_at,
            created_at,
            updated_at,
        } = row;
        Self {
            group_id,
            user_id,
            nick_name: nickname,
            display_name: display_nickname,
            face_url,
            display_face_url,
            role_level,
            ex,
            joined_at,
            join_source,
            inviter_user_id,
            operator_user_id,
            mute_end_at,
            left_at,
            created_at,
            updated_at,
        }
    }
}

/// Which members are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
enum State {
    /// Those who are members.
    #[default]
    Current,
    /// Those who were: they left, or the group is dismissed.
    Left,
    /// Both.
    All,
}

impl State {
    /// Of the filter, and of the scope of a cursor.
    fn parts(self) -> (MemberState, &'static str) {
        match self {
            Self::Current => (MemberState::Current, "current"),
            Self::Left => (MemberState::Left, "left"),
            Self::All => (MemberState::All, "all"),
        }
    }
}

/// A time for examples: 2026-11-23T08:15:30.123456Z.
pub(super) fn example_time() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + time::Duration::microseconds(1_795_421_730_123_456)
}

impl Example for Member {
    fn example() -> Self {
        Self {
            group_id: "12345".into(),
            user_id: "user789".into(),
            nick_name: Some("user".into()),
            display_name: Some("user".into()),
            face_url: Some("http://example.com/path/to/face/image.png".into()),
            display_face_url: Some("http://example.com/path/to/face/image.png".into()),
            role_level: Some(20),
            ex: Some("Extra data".into()),
            joined_at: Some(example_time()),
            join_source: Some(2),
            inviter_user_id: Some("boss".into()),
            operator_user_id: Some("boss".into()),
            mute_end_at: None,
            left_at: None,
            created_at: example_time(),
            updated_at: example_time(),
        }
    }
}

/// A page of members.
#[derive(Object, Serialize)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
struct MemberPage {
    /// The group that was asked for.
    #[oai(rename = "groupID")]
    #[serde(rename = "groupID")]
    group_id: String,
    /// In bytewise order of userID.
    members: Vec<Member>,
    /// Where the next page starts; null on the last one.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

impl Example for MemberPage {
    fn example() -> Self {
        Self {
            group_id: "12345".into(),
            members: vec![Member::example()],
            next_cursor: None,
        }
    }
}

#[derive(ApiResponse)]
enum MemberAnswer {
    /// The member.
    #[oai(status = 200)]
    Found(
        Answer<Member>,
        /// Changes whenever the member does.
        #[oai(header = "ETag")]
        String,
    ),
    /// The member is as it was when If-None-Match was its ETag.
    #[oai(status = 304)]
    NotModified(
        /// The same ETag.
        #[oai(header = "ETag")]
        String,
    ),
}

#[OpenApi(tag = "Tag::Reads")]
impl Members {
    /// Members of a group
    ///
    /// Current members, or those who left, in bytewise order of userID, a page at a time. Any page
    /// costs the same, however large the group, but that some are passed over one by one: those who
    /// left, among current members; and members of another role with roleLevel=20, or with another
    /// state than "current". A group that the mirror does not know has no members.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a parameter of the operation"
    )]
    #[oai(
        path = "/groups/:groupID/members",
        method = "get",
        operation_id = "listMembers"
    )]
    async fn list(
        &self,
        _key: ReadKey,
        /// The group.
        #[oai(name = "groupID", example = "params::example_group")]
        group_id: Path<String>,
        /// Which members.
        #[oai(default)]
        state: Query<State>,
        /// Only members with this role level.
        #[oai(name = "roleLevel")]
        role_level: Query<Option<i32>>,
        /// Only these users; may be repeated, up to 100 times.
        #[oai(name = "userID", validator(max_items = 100))]
        user_ids: Query<Option<Vec<String>>>,
        /// Most members on a page. It ends earlier where they have 4 MiB of text: follow nextCursor.
        #[oai(
            default = "params::default_limit",
            validator(minimum(value = "1"), maximum(value = "1000"))
        )]
        limit: Query<u32>,
        /// nextCursor of the page before, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<MemberPage>, ReadFailure> {
        let group = params::group_id(group_id.0)?;
        let mut user_ids = user_ids
            .0
            .unwrap_or_default()
            .into_iter()
            .map(params::user_id)
            .collect::<Result<Vec<UserId>, Error>>()?;
        user_ids.sort_unstable();
        user_ids.dedup();

        let role = role_level
            .0
            .map_or(String::new(), |level| level.to_string());
        let (state, name) = state.0.parts();
        let scope = Scope::new("members").and(group.as_str());
        let scope = scope.and(name).and(&role);
        let scope = user_ids
            .iter()
            .fold(scope, |scope, id| scope.and(id.as_str()));
        let after = scope.key(cursor.0.as_deref())?;
        let filter = MemberFilter {
            state,
            role_level: role_level.0,
            user_ids,
        };
        let mut reading = Reading::begin(&self.memory, limit.0 as usize + 1).await?;
        let page = loop {
            let room = reading.room();
            let found = self
                .store
                .members(&group, &filter, &after, limit.0, room)
                .await?;
            if let Some(page) = reading.takes(found).await? {
                break page;
            }
        };
        let found = reading.end_page(page, MemberRow::bytes);
        let next_cursor = page::next(&found.rows, &scope, |row| &row.user_id);
        let make = |page: Page<MemberRow>| MemberPage {
            group_id: group.as_str().to_owned(),
            members: page.rows.into_iter().map(Member::from).collect(),
            next_cursor,
        };
        Ok(found.write(make)?)
    }

    /// One member
    ///
    /// The member, if it is a current one. Send the ETag of an earlier answer as If-None-Match to
    /// get 304 as long as nothing has changed. Of the ids `.` and `..`, which cannot be sent in a path,
    /// `/memberships/query` answers the same.
    #[oai(
        path = "/groups/:groupID/members/:userID",
        method = "get",
        operation_id = "getMember"
    )]
    async fn member(
        &self,
        _key: ReadKey,
        /// The group.
        #[oai(name = "groupID", example = "params::example_group")]
        group_id: Path<String>,
        /// The user.
        #[oai(name = "userID", example = "params::example_user")]
        user_id: Path<String>,
        /// ETag of an earlier answer.
        #[oai(name = "If-None-Match")]
        _if_none_match: Header<Option<String>>,
        // Has all lines of it.
        request: &Request,
    ) -> Result<MemberAnswer, ReadFailure> {
        let group = params::group_id(group_id.0)?;
        let user = params::user_id(user_id.0)?;
        let pair: Arc<[_]> = [(group, user)].into();
        let mut reading = Reading::begin(&self.memory, 1).await?;
        let row = loop {
            let found = match reading.room() {
                Room::Short => self.store.memberships(Arc::clone(&pair)).await?,
                Room::Bytes(bytes) => self.store.long_members(&[(&pair[0], bytes)]).await?,
            };
            let Some(member) = found.into_iter().next().flatten() else {
                break None;
            };
            let found = match member.has_texts {
                true => Found::Whole(member.row),
                false => Found::Long(member.bytes),
            };
            if let Some(row) = reading.takes(found).await? {
                break Some(row);
            }
        };
        let Some(row) = row else {
            let detail = "no current member of this group has this userID";
            return Err(Error::new(Code::MemberUnknown, detail).into());
        };
        let etag = etag::of(row.updated_at);
        if etag::is_held(request.headers(), &etag) {
            return Ok(MemberAnswer::NotModified(etag));
        }
        let bytes = row.bytes();
        let found = reading.end(row, 1, bytes);
        Ok(MemberAnswer::Found(found.write(Member::from)?, etag))
    }
}

#[cfg(test)]
mod tests {
    use super::super::written::assert_written_as_documented;
    use super::{Member, MemberPage};

    #[test]
    fn answers_are_written_as_documented() {
        assert_written_as_documented::<Member>();
        assert_written_as_documented::<MemberPage>();
    }
}
