//! Rows as the domain sees them.

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use time::OffsetDateTime;

use super::read::Texts;
use crate::domain::{Group, GroupId, Member, Profile, Text, UserId};

/// A group.
pub(super) struct StoredGroup {
    pub(super) group_id: GroupId,
    pub(super) group: Group,
    pub(super) last_callback_xid: Option<i64>,
    pub(super) emptying: Emptying,
    pub(super) created_at: OffsetDateTime,
}

/// How far a dismissal is with the rows of those who were members.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Emptying {
    /// How often the group was dismissed.
    pub(super) dismissals: i32,
    /// When those have left whose rows do not say so yet.
    pub(super) at: Option<OffsetDateTime>,
}

/// A member, current or gone.
pub(super) struct StoredMember {
    pub(super) group_id: GroupId,
    pub(super) user_id: UserId,
    pub(super) member: Member,
    pub(super) last_callback_xid: Option<i64>,
    pub(super) created_at: OffsetDateTime,
}

impl Texts for StoredMember {
    fn texts(&self) -> impl Iterator<Item = &str> {
        let member = &self.member;
        let texts = [
            &member.nickname,
            &member.display_nickname,
            &member.face_url,
            &member.display_face_url,
            &member.ex,
            &member.inviter,
            &member.operator,
        ];
        texts.into_iter().flatten().map(Text::as_str)
    }
}

/// An id that we have written, or an error as for any value that cannot be read.
pub(super) fn id<T>(
    row: &PgRow,
    column: &str,
    parse: impl FnOnce(String) -> Result<T, crate::domain::IdError>,
) -> Result<T, sqlx::Error> {
    parse(row.try_get(column)?).map_err(|error| sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: error.into(),
    })
}

fn text_of(row: &PgRow, column: &str) -> Result<Option<Text>, sqlx::Error> {
    Ok(row.try_get::<Option<String>, _>(column)?.map(Text::parse))
}

impl FromRow<'_, PgRow> for StoredGroup {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let has_owner = row.try_get::<Option<&str>, _>("owner_user_id")?.is_some();
        let owner = || id(row, "owner_user_id", UserId::parse);
        Ok(Self {
            group_id: id(row, "group_id", GroupId::parse)?,
            group: Group {
                profile: Profile {
                    name: text_of(row, "name")?,
                    notification: text_of(row, "notification")?,
                    introduction: text_of(row, "introduction")?,
                    face_url: text_of(row, "face_url")?,
                    ex: text_of(row, "ex")?,
                    need_verification: row.try_get("need_verification")?,
                    look_member_info: row.try_get("look_member_info")?,
                    apply_member_friend: row.try_get("apply_member_friend")?,
                },
                owner: has_owner.then(owner).transpose()?,
                status: row.try_get("status")?,
                group_type: row.try_get("group_type")?,
                created_in_openim_at: row.try_get("created_in_openim_at")?,
                dismissed_at: row.try_get("dismissed_at")?,
            },
            last_callback_xid: row.try_get("last_callback_xid")?,
            emptying: Emptying {
                dismissals: row.try_get("dismissals")?,
                at: row.try_get("emptying_at")?,
            },
            created_at: row.try_get("created_at")?,
        })
    }
}

impl FromRow<'_, PgRow> for StoredMember {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            group_id: id(row, "group_id", GroupId::parse)?,
            user_id: id(row, "user_id", UserId::parse)?,
            member: Member {
                nickname: text_of(row, "nickname")?,
                face_url: text_of(row, "face_url")?,
                role_level: row.try_get("role_level")?,
                ex: text_of(row, "ex")?,
                display_nickname: text_of(row, "display_nickname")?,
                display_face_url: text_of(row, "display_face_url")?,
                joined_at: row.try_get("joined_at")?,
                join_source: row.try_get("join_source")?,
                inviter: text_of(row, "inviter_user_id")?,
                operator: text_of(row, "operator_user_id")?,
                mute_end_at: row.try_get("mute_end_at")?,
                left_at: row.try_get("left_at")?,
            },
            last_callback_xid: row.try_get("last_callback_xid")?,
            created_at: row.try_get("created_at")?,
        })
    }
}
