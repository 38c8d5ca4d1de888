//! Reads of the members of one group.

use std::sync::Arc;

use poem::Request;
use poem_openapi::param::{Header, Path, Query};
use poem_openapi::{ApiResponse, Enum, OpenApi};
use time::OffsetDateTime;

use super::params::{self, etag_of, has_etag};
use super::{Answer, PageRequest, Scope, read};
use crate::domain::UserId;
use crate::http::error::{Code, Error, ReadFailure};
use crate::http::json_response::{example_time, json_object, optional_rfc3339, rfc3339};
use crate::http::server::auth::{ReadKey, Tag};
use crate::http::server::memory::AnswerMemory;
use crate::store::{self, Found, MemberFilter, MemberRow, MemberState, Room, Store};

pub(crate) struct Members {
    pub(crate) store: Store,
    pub(crate) memory: Arc<AnswerMemory>,
}

json_object! {
    /// A member of a group. null means unknown, unless the field says otherwise. An empty text is a
    /// value.
    #[oai(example, rename = "Member")]
    struct MemberJson from MemberRow {
        /// The group.
        group_id "groupID": String = "12345".into();
        /// The user.
        user_id "userID": String = "user789".into();
        /// Name in this group. Empty: OpenIM shows the name of the user's profile. null: unknown.
        nickname "nickName" nullable: Option<String> = Some("user".into());
        /// The name that OpenIM shows: the name in this group or, if that is empty, of the user's
        /// profile. null: unknown, because the mirror was not reconciled with OpenIM since it changed.
        display_nickname "displayName" nullable: Option<String> = Some("user".into());
        /// Avatar in this group. Empty: OpenIM shows the avatar of the user's profile. null: unknown.
        face_url "faceURL" nullable: Option<String> =
            Some("http://example.com/path/to/face/image.png".into());
        /// The avatar that OpenIM shows: the avatar in this group or, if that is empty, of the user's
        /// profile. null: unknown, as for displayName.
        display_face_url "displayFaceURL" nullable: Option<String> =
            Some("http://example.com/path/to/face/image.png".into());
        /// 100 owner, 60 admin, 20 ordinary member; OpenIM may send other numbers.
        role_level "roleLevel" nullable: Option<i32> = Some(20);
        /// Extra data.
        ex "ex" nullable: Option<String> = Some("Extra data".into());
        /// Time of the join. null: unknown.
        joined_at "joinedAt" nullable: Option<OffsetDateTime> as "optional_rfc3339" =
            Some(example_time());
        /// Way of the join: 1 by an administrator, 2 invited, 3 by search, 4 by QR code, 0 not recorded
        /// by OpenIM. null: unknown.
        join_source "joinSource" nullable: Option<i32> = Some(2);
        /// User who invited the member, as in OpenIM. null: unknown.
        inviter_user_id "inviterUserID" nullable: Option<String> = Some("boss".into());
        /// User who admitted the member, as in OpenIM. null: unknown.
        operator_user_id "operatorUserID" nullable: Option<String> = Some("boss".into());
        /// End of the mute. null: not muted, or unknown.
        mute_end_at "muteEndAt" nullable: Option<OffsetDateTime> as "optional_rfc3339" = None;
        /// Time of the leave, or of the dismissal of the group. null for a current member.
        left_at "leftAt" nullable: Option<OffsetDateTime> as "optional_rfc3339" = None;
        /// Time at which the mirror added the member.
        created_at "createdAt": OffsetDateTime as "rfc3339" = example_time();
        /// Time of the last change of a value above. (A dismissal changes the group.)
        updated_at "updatedAt": OffsetDateTime as "rfc3339" = example_time();
    }
}

json_object! {
    /// A page of members.
    #[oai(example)]
    struct MemberPage {
        /// The group of the request.
        group_id "groupID": String = "12345".into();
        /// In bytewise order of userID.
        members "members": Vec<MemberJson> = vec![MemberJson::example()];
        /// Cursor of the next page. null on the last one.
        next_cursor "nextCursor" nullable: Option<String> = None;
    }
}

/// Filter of members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
enum State {
    /// Current members.
    #[default]
    Current,
    /// Members who left, and members of a dismissed group.
    Left,
    /// Both.
    All,
}

impl State {
    /// The filter, and its text in the scope of a cursor.
    fn parts(self) -> (MemberState, &'static str) {
        match self {
            Self::Current => (MemberState::Current, "current"),
            Self::Left => (MemberState::Left, "left"),
            Self::All => (MemberState::All, "all"),
        }
    }
}

#[derive(ApiResponse)]
enum MemberAnswer {
    /// The member.
    #[oai(status = 200)]
    Found(
        Answer<MemberJson>,
        /// Changes with each change of the member.
        #[oai(header = "ETag")]
        String,
    ),
    /// The member has not changed since If-None-Match was its ETag.
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
    /// Current members, or members who left, in bytewise order of userID, in pages. A page costs the
    /// same in a group of any size. But the read skips some members one by one: members who left, among
    /// current ones; and members of another role with roleLevel=20, or with a state other than
    /// "current". A group that the mirror does not know has no members.
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
        /// Filter by state.
        #[oai(default)]
        state: Query<State>,
        /// Only members with this role level.
        #[oai(name = "roleLevel")]
        role_level: Query<Option<i32>>,
        /// Only these users. Can be repeated, up to 100 times.
        #[oai(name = "userID", validator(max_items = 100))]
        user_ids: Query<Option<Vec<String>>>,
        /// Limit of members on a page. A page also ends at 4 MiB of text: follow nextCursor.
        #[oai(
            default = "params::default_limit",
            validator(minimum(value = "1"), maximum(value = "1000"))
        )]
        limit: Query<u32>,
        /// nextCursor of the page before, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<MemberPage>, ReadFailure> {
        let group = params::group_id(group_id.0)?;
        let user_ids = user_ids.0.unwrap_or_default().into_iter();
        let user_ids: Result<Vec<UserId>, Error> = user_ids.map(params::user_id).collect();
        let mut user_ids = user_ids?;
        user_ids.sort_unstable();
        user_ids.dedup();

        let role = role_level.0.map_or(String::new(), |role| role.to_string());
        let (state, name) = state.0.parts();
        let scope = Scope::new("members").and(group.as_str());
        let scope = scope.and(name).and(&role);
        let scope = user_ids
            .iter()
            .fold(scope, |scope, id| scope.and(id.as_str()));
        let filter = MemberFilter {
            state,
            role_level: role_level.0,
            user_ids,
        };
        let page = PageRequest::new(scope, cursor.0.as_deref(), limit.0)?;
        let (store, limit) = (&self.store, page.limit);
        let find = |room| store.members(&group, &filter, &page.after, limit, room);
        let key = |row: &MemberRow| row.user_id.clone();
        let (found, next_cursor) = page.read(&self.memory, find, MemberRow::bytes, key).await?;
        Ok(found.write(|page| MemberPage {
            group_id: group.as_str().to_owned(),
            members: page.rows.into_iter().map(MemberJson::from).collect(),
            next_cursor,
        })?)
    }

    /// One member
    ///
    /// The member, if it is a current one. To get 304 while nothing has changed, send the ETag of an
    /// earlier answer as If-None-Match. The ids `.` and `..` cannot be sent in a path. For them,
    /// `/memberships/query` has the same answer.
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
        // Has all lines of the header.
        request: &Request,
    ) -> Result<MemberAnswer, ReadFailure> {
        let group = params::group_id(group_id.0)?;
        let user = params::user_id(user_id.0)?;
        let pair: Arc<[_]> = [(group, user)].into();
        let (store, pair) = (&self.store, &pair);
        let find = |room| async move {
            let found = match room {
                Room::Short => store.memberships(Arc::clone(pair)).await?,
                Room::Bytes(bytes) => store.long_members(&[(&pair[0], bytes)]).await?,
            };
            let member = found.into_iter().next().flatten();
            Ok::<_, store::Error>(member.map(|member| match member.has_texts {
                true => Found::Whole(member.row),
                false => Found::Long(member.bytes),
            }))
        };
        let found = read(&self.memory, 1, find, |row: &MemberRow| (1, row.bytes())).await?;
        let Some(found) = found else {
            let detail = "no current member of this group has this userID";
            return Err(Error::new(Code::MemberUnknown, detail).into());
        };
        let etag = etag_of(found.rows.updated_at);
        if has_etag(request.headers(), &etag) {
            return Ok(MemberAnswer::NotModified(etag));
        }
        Ok(MemberAnswer::Found(found.write(MemberJson::from)?, etag))
    }
}

#[cfg(test)]
mod tests {
    use super::{MemberJson, MemberPage};
    use crate::http::json_response::assert_written_as_documented;

    #[test]
    fn answers_are_written_as_documented() {
        assert_written_as_documented::<MemberJson>();
        assert_written_as_documented::<MemberPage>();
    }
}
