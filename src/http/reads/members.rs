//! Reads of the members of one group.

use std::sync::Arc;

use poem::Request;
use poem::http::HeaderMap;
use poem::http::header::IF_NONE_MATCH;
use poem_openapi::param::{Header, Path, Query};
use poem_openapi::{ApiResponse, Enum, OpenApi};
use time::OffsetDateTime;

use super::{Answer, PageRequest, ReadState, Scope, read};
use crate::domain::UserId;
use crate::http::error::{Code, Error, ReadFailure};
use crate::http::json_response::{example_time, json_object, optional_rfc3339, rfc3339};
use crate::http::server::auth::{ReadKey, Tag};
use crate::store::{self, Found, MemberFilter, MemberRow, MemberState, Room};

pub(crate) struct Members(pub(crate) ReadState);

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
        /// ETag of the member, equal to If-None-Match.
        #[oai(header = "ETag")]
        String,
    ),
}

#[OpenApi(tag = "Tag::Reads")]
impl Members {
    /// Members of a group
    ///
    /// Current members, or members who left, in bytewise order of userID, in pages. A page costs the
    /// same in a group of any size. The read skips two kinds of members one by one: members who left,
    /// if it lists current members; and members of another role, if roleLevel=20 or another state is
    /// given. A group that the mirror does not know has no members.
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
        #[oai(name = "groupID", example = "super::example_group")]
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
            default = "super::default_limit",
            validator(minimum(value = "1"), maximum(value = "1000"))
        )]
        limit: Query<u32>,
        /// nextCursor of the page before, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<MemberPage>, ReadFailure> {
        let group = super::group_id(group_id.0)?;
        let user_ids = user_ids.0.unwrap_or_default().into_iter();
        let user_ids: Result<Vec<UserId>, Error> = user_ids.map(super::user_id).collect();
        let mut user_ids = user_ids?;
        user_ids.sort_unstable();
        user_ids.dedup();

        let role = role_level.0.map_or(String::new(), |role| role.to_string());
        let (state, name) = state.0.parts();
        let scope = Scope::new("members").and(group.as_str());
        let scope = scope.and(name).and(&role);
        let ids = user_ids.iter().map(UserId::as_str);
        let scope = ids.fold(scope, Scope::and);
        let filter = MemberFilter {
            state,
            role_level: role_level.0,
            user_ids,
        };
        let page = PageRequest::new(scope, cursor.0, limit.0)?;
        let store = &self.0.store;
        let find = |room| store.members(&group, &filter, &page.after, page.limit, room);
        let make = |members, next_cursor| MemberPage {
            group_id: group.as_str().to_owned(),
            members,
            next_cursor,
        };
        let memory = &self.0.memory;
        Ok(page
            .answer(memory, find, MemberRow::bytes, |row| &row.user_id, make)
            .await?)
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
        #[oai(name = "groupID", example = "super::example_group")]
        group_id: Path<String>,
        /// The user.
        #[oai(name = "userID", example = "super::example_user")]
        user_id: Path<String>,
        /// ETag of an earlier answer.
        #[oai(name = "If-None-Match")]
        _if_none_match: Header<Option<String>>,
        // Has all lines of the header.
        request: &Request,
    ) -> Result<MemberAnswer, ReadFailure> {
        let group = super::group_id(group_id.0)?;
        let user = super::user_id(user_id.0)?;
        let pair: Arc<[_]> = [(group, user)].into();
        let (store, pair) = (&self.0.store, &pair);
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
        let found = read(&self.0.memory, 1, find, |row: &MemberRow| (1, row.bytes())).await?;
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

/// ETag of a row. Each change of a value moves `updated_at` by at least a microsecond, so all digits of
/// it make a strong ETag.
fn etag_of(updated_at: OffsetDateTime) -> String {
    format!("\"{}\"", updated_at.unix_timestamp_nanos() / 1000)
}

/// True if an If-None-Match has the ETag. A value that cannot be read has none.
///
/// Own code, because libraries compare whole tags. Proxies that compress answers (Apache's mod_deflate
/// and mod_brotli, Caddy) add a suffix to the tag and do not remove it again.
fn has_etag(headers: &HeaderMap, etag: &str) -> bool {
    let tag = etag.trim_matches('"').as_bytes();
    let mut lines = headers.get_all(IF_NONE_MATCH).iter();
    lines.any(|line| has_tag(line.as_bytes().trim_ascii(), tag))
}

fn has_tag(line: &[u8], tag: &[u8]) -> bool {
    let mut rest = line;
    loop {
        while let [b' ' | b'\t' | b',', after @ ..] = rest {
            rest = after;
        }
        rest = rest.strip_prefix(b"W/").unwrap_or(rest);
        let Some(quoted) = rest.strip_prefix(b"\"") else {
            return line == b"*";
        };
        let Some(end) = quoted.iter().position(|byte| *byte == b'"') else {
            return false;
        };
        if is_tag(&quoted[..end], tag) {
            return true;
        }
        rest = &quoted[end + 1..];
    }
}

/// True for the tag, and for the tag with the name of an encoding.
fn is_tag(tag_of_client: &[u8], tag: &[u8]) -> bool {
    match tag_of_client.strip_prefix(tag) {
        Some([]) => true,
        // Tags are digits, so no tag is the start of another one with a hyphen.
        Some([b'-', encoding @ ..]) => {
            let is_letter = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'-';
            !encoding.is_empty() && encoding.iter().all(is_letter)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderValue;

    use super::*;

    fn is_found(lines: &[&str]) -> bool {
        let values = lines
            .iter()
            .map(|line| HeaderValue::from_str(line).unwrap());
        let headers: HeaderMap = values.map(|value| (IF_NONE_MATCH, value)).collect();
        has_etag(&headers, "\"17\"")
    }

    #[test]
    fn a_tag_is_found_at_any_place_and_with_the_suffix_of_a_proxy() {
        for lines in [
            &["\"17\""][..],
            &["W/\"17\""],
            &["*"],
            &[" \"a,b\" ,, W/\"c\"\t, \"17\" "],
            &["\"17-gzip\""],
            &["W/\"17-br\""],
            &["\"17--gzip\""],
            &["\"16\"", "\"17-zstd\""],
            &["nonsense", "\"17\""],
        ] {
            assert!(is_found(lines), "{lines:?}");
        }
        for lines in [
            &[][..],
            &[""],
            &["17"],
            &["\"17"],
            &["\"1\""],
            &["\"170\""],
            &["\"017\""],
            &["\"17-\""],
            &["\"17-2\""],
            &["\"17gzip\""],
            &["w/\"17\""],
            &["\"16\", *"],
            &["\"x\" \"y, \"17"],
        ] {
            assert!(!is_found(lines), "{lines:?}");
        }
    }
}
