//! The columns of members and groups. Each list stands here once; statements, reads and writes are
//! made from it.
//!
//! A column is `(number, type, column, field)`: the number of its parameter in the statement that
//! writes whole rows, its type, its name, and its field in the domain. The type `id` is a text that
//! is never long. Numbers and times come before texts: comparisons of rows then decide by them first
//! and read long texts only if they must.
//!
//! To add a column to a read and a write: add it to a list here, with the next number.

use sqlx::postgres::{PgArguments, PgRow, PgTypeInfo, PgValueRef};
use sqlx::query::Query;
use sqlx::{Decode, FromRow, Postgres, Row, Type};
use time::OffsetDateTime;

use crate::domain::{Group, GroupId, Member, MemberPatch, Text, UserId};

/// Gives the columns of a member to a macro. `left_at`, keys and bookkeeping are not in the list.
macro_rules! with_member_columns {
    ($macro:ident $($arguments:tt)*) => {
        $macro! { [
            (8 integer role_level role_level)
            (9 timestamptz joined_at joined_at)
            (10 integer join_source join_source)
            (11 timestamptz mute_end_at mute_end_at)
            (12 text nickname nickname)
            (13 text face_url face_url)
            (14 text ex ex)
            (15 text display_nickname display_nickname)
            (16 text display_face_url display_face_url)
            (17 text inviter_user_id inviter)
            (18 text operator_user_id operator)
        ] $($arguments)* }
    };
}

/// Gives the columns that a patch of a member can change to a macro.
macro_rules! with_patch_columns {
    ($macro:ident $($arguments:tt)*) => {
        $macro! { [
            (3 integer role_level role_level)
            (4 text nickname nickname)
            (5 text face_url face_url)
            (6 text ex ex)
        ] $($arguments)* }
    };
}

/// Gives the columns of a group to a macro. `dismissed_at`, the key and bookkeeping are not in the
/// list.
macro_rules! with_group_columns {
    ($macro:ident $($arguments:tt)*) => {
        $macro! { [
            (9 integer status status)
            (10 integer group_type group_type)
            (11 integer need_verification profile.need_verification)
            (12 integer look_member_info profile.look_member_info)
            (13 integer apply_member_friend profile.apply_member_friend)
            (14 timestamptz created_in_openim_at created_in_openim_at)
            (15 id owner_user_id owner)
            (16 text name profile.name)
            (17 text notification profile.notification)
            (18 text introduction profile.introduction)
            (19 text face_url profile.face_url)
            (20 text ex profile.ex)
        ] $($arguments)* }
    };
}

/// Makes a list of SQL, each item after a comma, with `sql_column!`.
macro_rules! sql_columns {
    ([$(($number:literal $type:ident $name:ident $($field:ident).+))+] $form:tt) => {
        concat!($(sql_column!($form $number $type $name)),+)
    };
}

/// Makes the SQL of one column in a form.
macro_rules! sql_column {
    // Its name.
    (plain $number:literal $type:ident $name:ident) => {
        concat!(", ", stringify!($name))
    };
    // Its name in a table.
    ((of $table:literal) $number:literal $type:ident $name:ident) => {
        concat!(", ", $table, ".", stringify!($name))
    };
    // A long text is replaced by a mark: a text longer than any short one. See `read::pages`.
    (short $number:literal text $name:ident) => {
        concat!(
            ", CASE WHEN octet_length(",
            stringify!($name),
            ") > 1024 THEN repeat('!', 1025) ELSE ",
            stringify!($name),
            " END AS ",
            stringify!($name)
        )
    };
    (short $number:literal $type:ident $name:ident) => {
        concat!(", ", stringify!($name))
    };
    // A text is NULL unless a condition holds.
    ((texts_if $condition:expr) $number:literal text $name:ident) => {
        concat!(
            ", CASE WHEN ",
            $condition,
            " THEN ",
            stringify!($name),
            " END AS ",
            stringify!($name)
        )
    };
    ((texts_if $condition:expr) $number:literal $type:ident $name:ident) => {
        concat!(", ", stringify!($name))
    };
    // The length of a text, to be added to a number.
    (bytes $number:literal text $name:ident) => {
        concat!(" + COALESCE(octet_length(", stringify!($name), "), 0)")
    };
    (bytes $number:literal id $name:ident) => {
        concat!(" + COALESCE(octet_length(", stringify!($name), "), 0)")
    };
    (bytes $number:literal $type:ident $name:ident) => {
        ""
    };
    // The value to write: a text can be kept as it is stored.
    (written $number:literal text $name:ident) => {
        concat!(
            ", CASE WHEN written.keeps THEN kept.",
            stringify!($name),
            " ELSE written.",
            stringify!($name),
            " END"
        )
    };
    (written $number:literal $type:ident $name:ident) => {
        concat!(", written.", stringify!($name))
    };
    // Its parameter, as an array or a single value.
    (array $number:literal id $name:ident) => {
        concat!(", $", $number, "::text[]")
    };
    (array $number:literal $type:ident $name:ident) => {
        concat!(", $", $number, "::", stringify!($type), "[]")
    };
    (value $number:literal $type:ident $name:ident) => {
        concat!(", $", $number, "::", stringify!($type))
    };
    // Its assignment in an upsert.
    (set $number:literal $type:ident $name:ident) => {
        concat!(", ", stringify!($name), " = EXCLUDED.", stringify!($name))
    };
    // Its value and its assignment in a patch. NULL stands for "leave it".
    (patched $number:literal $type:ident $name:ident) => {
        concat!(
            ", COALESCE(patch.",
            stringify!($name),
            ", stored.",
            stringify!($name),
            ")"
        )
    };
    (set_patched $number:literal $type:ident $name:ident) => {
        concat!(
            ", ",
            stringify!($name),
            " = COALESCE(patch.",
            stringify!($name),
            ", stored.",
            stringify!($name),
            ")"
        )
    };
}

/// SQL of the columns of a member, each after a comma.
macro_rules! member_columns {
    ($form:tt) => { with_member_columns!(sql_columns $form) };
}

/// SQL of the columns of a patch, each after a comma.
macro_rules! patch_columns {
    ($form:tt) => { with_patch_columns!(sql_columns $form) };
}

/// SQL of the columns of a group, each after a comma.
macro_rules! group_columns {
    ($form:tt) => { with_group_columns!(sql_columns $form) };
}

/// SQL of all columns of a [`MemberRow`], or of its bytes.
macro_rules! member_row {
    (bytes) => {
        concat!(
            "octet_length(group_id)::bigint + octet_length(user_id)",
            member_columns!(bytes)
        )
    };
    ($form:tt) => {
        member_row!($form, "left_at")
    };
    ($form:tt, $left_at:expr) => {
        concat!(
            "group_id, user_id",
            member_columns!($form),
            ", ",
            $left_at,
            ", created_at, updated_at"
        )
    };
}

/// SQL of a [`MemberRow`] of the group `$1`. At a dismissal all members leave, and for a while their
/// rows do not say so.
macro_rules! member_row_of_group {
    (bytes) => { member_row!(bytes) };
    ((texts_if $condition:expr)) => { member_row!((texts_if $condition)) };
    ($form:tt) => {
        member_row!($form, "COALESCE(left_at, CASE
           WHEN came_at_dismissal IS DISTINCT FROM
                (SELECT g.dismissals FROM groups AS g WHERE g.group_id = $1)
           THEN (SELECT g.emptying_at FROM groups AS g WHERE g.group_id = $1) END) AS left_at")
    };
}

/// SQL of all columns of a [`GroupRow`], or of its bytes.
macro_rules! group_row {
    (bytes) => { concat!("octet_length(group_id)::bigint", group_columns!(bytes)) };
    // Around a query that has cleared `dismissed_at`.
    ((texts_if $condition:expr)) => { group_row!((texts_if $condition), "dismissed_at") };
    ($form:tt) => { group_row!($form, "CASE WHEN status = 2 THEN dismissed_at END AS dismissed_at") };
    ($form:tt, $dismissed_at:expr) => {
        concat!(
            "group_id", group_columns!($form), ", ", $dismissed_at,
            ", check_wanted_since, check_reason, created_at, updated_at"
        )
    };
}

/// Reads columns of a row one after the other. To find a column by its name takes as long as to read
/// it.
pub(super) struct Columns<'r> {
    row: &'r PgRow,
    next: usize,
}

impl<'r> Columns<'r> {
    pub(super) fn of(row: &'r PgRow) -> Self {
        Self { row, next: 0 }
    }

    /// Reads the next column.
    pub(super) fn take<T: Decode<'r, Postgres> + Type<Postgres>>(
        &mut self,
    ) -> Result<T, sqlx::Error> {
        let value = self.row.try_get(self.next)?;
        self.next += 1;
        Ok(value)
    }
}

/// Reads a type of the domain from a text. A text that the mirror cannot have written is an error.
macro_rules! decode_from_text {
    ($($type:ident)+) => {$(
        impl Type<Postgres> for $type {
            fn type_info() -> PgTypeInfo {
                <String as Type<Postgres>>::type_info()
            }

            fn compatible(other: &PgTypeInfo) -> bool {
                <String as Type<Postgres>>::compatible(other)
            }
        }

        impl Decode<'_, Postgres> for $type {
            fn decode(value: PgValueRef<'_>) -> Result<Self, sqlx::error::BoxDynError> {
                Ok($type::try_from(<String as Decode<Postgres>>::decode(value)?)?)
            }
        }
    )+};
}

decode_from_text!(GroupId UserId Text);

/// Sets the fields of a value from the next columns.
macro_rules! read_columns {
    ([$(($number:literal $type:ident $name:ident $($field:ident).+))+] $columns:ident $value:ident) => {
        $($value.$($field).+ = $columns.take()?;)+
    };
}

/// Reads the key, the values and the leave of a member.
pub(super) fn read_member(
    columns: &mut Columns<'_>,
) -> Result<(GroupId, UserId, Member), sqlx::Error> {
    let (group_id, user_id) = (columns.take()?, columns.take()?);
    let mut member = Member::default();
    with_member_columns!(read_columns columns member);
    member.left_at = columns.take()?;
    Ok((group_id, user_id, member))
}

/// Reads the key, the values and the dismissal of a group.
pub(super) fn read_group(columns: &mut Columns<'_>) -> Result<(GroupId, Group), sqlx::Error> {
    let group_id = columns.take()?;
    let mut group = Group::default();
    with_group_columns!(read_columns columns group);
    group.dismissed_at = columns.take()?;
    Ok((group_id, group))
}

/// A statement and its arguments.
pub(super) type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// Makes a parameter from a field of the domain.
macro_rules! parameter {
    (text $field:expr) => {
        $field.as_ref().map(Text::as_str)
    };
    (id $field:expr) => {
        $field.as_ref().map(UserId::as_str)
    };
    ($type:ident $field:expr) => {
        $field
    };
}

/// Binds one array for each column.
macro_rules! bind_arrays {
    ([$(($number:literal $type:ident $name:ident $($field:ident).+))+] $query:ident $rows:ident) => {
        $(
            let values = $rows.iter().map(|row| parameter!($type row.$($field).+));
            let $query = $query.bind(values.collect::<Vec<_>>());
        )+
    };
}

/// Binds one value for each column.
macro_rules! bind_values {
    ([$(($number:literal $type:ident $name:ident $($field:ident).+))+] $query:ident $row:ident) => {
        $(let $query = $query.bind(parameter!($type $row.$($field).+));)+
    };
}

pub(super) fn bind_members<'q>(query: PgQuery<'q>, members: &[&'q Member]) -> PgQuery<'q> {
    with_member_columns!(bind_arrays query members);
    query
}

pub(super) fn bind_groups<'q>(query: PgQuery<'q>, groups: &[&'q Group]) -> PgQuery<'q> {
    with_group_columns!(bind_arrays query groups);
    query
}

pub(super) fn bind_patches<'q>(query: PgQuery<'q>, patches: &[&'q MemberPatch]) -> PgQuery<'q> {
    with_patch_columns!(bind_arrays query patches);
    query
}

pub(super) fn bind_patch<'q>(query: PgQuery<'q>, patch: &'q MemberPatch) -> PgQuery<'q> {
    with_patch_columns!(bind_values query patch);
    query
}

/// Rust type of a column.
macro_rules! rust_type {
    (text) => {
        String
    };
    (id) => {
        String
    };
    (integer) => {
        i32
    };
    (timestamptz) => {
        OffsetDateTime
    };
}

/// Text in a field, if it has one.
macro_rules! text_in {
    (text $field:expr) => {
        $field.as_deref()
    };
    ($type:ident $field:expr) => {
        None::<&str>
    };
}

/// Bytes of a text or an id in a field.
macro_rules! bytes_in {
    (integer $field:expr) => {
        0
    };
    (timestamptz $field:expr) => {
        0
    };
    ($type:ident $field:expr) => {
        $field.as_ref().map_or(0, String::len)
    };
}

/// Deletes a text in a field.
macro_rules! clear_text {
    (text $field:expr) => {
        $field = None
    };
    ($type:ident $field:expr) => {};
}

macro_rules! member_row_type {
    ([$(($number:literal $type:ident $name:ident $field:ident))+]) => {
        /// A member as readers see it.
        #[derive(Clone, Debug)]
        #[expect(missing_docs, reason = "the columns; see migrations/")]
        pub struct MemberRow {
            pub group_id: String,
            pub user_id: String,
            $(pub $name: Option<rust_type!($type)>,)+
            /// Time when the member left, or when the group was dismissed.
            pub left_at: Option<OffsetDateTime>,
            pub created_at: OffsetDateTime,
            pub updated_at: OffsetDateTime,
        }

        impl MemberRow {
            pub(super) fn read(columns: &mut Columns<'_>) -> Result<Self, sqlx::Error> {
                Ok(Self {
                    group_id: columns.take()?,
                    user_id: columns.take()?,
                    $($name: columns.take()?,)+
                    left_at: columns.take()?,
                    created_at: columns.take()?,
                    updated_at: columns.take()?,
                })
            }

            /// Returns the length of texts and ids.
            pub fn bytes(&self) -> usize {
                self.group_id.len() + self.user_id.len() $(+ bytes_in!($type self.$name))+
            }

            /// Frees the memory of texts and ids.
            pub(super) fn clear_texts(&mut self) {
                (self.group_id, self.user_id) = (String::new(), String::new());
                $(clear_text!($type self.$name);)+
            }
        }

        impl Texts for MemberRow {
            fn texts(&self) -> impl Iterator<Item = &str> {
                [$(text_in!($type self.$name)),+].into_iter().flatten()
            }
        }

        /// Returns the texts of a member.
        pub(super) fn texts_of(member: &Member) -> impl Iterator<Item = &str> {
            [$(member_text!($type member.$field)),+].into_iter().flatten()
        }
    };
}

/// Text in a field of the domain, if it has one.
macro_rules! member_text {
    (text $field:expr) => {
        $field.as_ref().map(Text::as_str)
    };
    ($type:ident $field:expr) => {
        None::<&str>
    };
}

with_member_columns!(member_row_type);

macro_rules! group_row_type {
    ([$(($number:literal $type:ident $name:ident $($field:ident).+))+]) => {
        /// A group as readers see it.
        #[derive(Clone, Debug)]
        #[expect(missing_docs, reason = "the columns; see migrations/")]
        pub struct GroupRow {
            pub group_id: String,
            $(pub $name: Option<rust_type!($type)>,)+
            /// Present only while the group is dismissed.
            pub dismissed_at: Option<OffsetDateTime>,
            pub check_wanted_since: Option<OffsetDateTime>,
            pub check_reason: Option<String>,
            pub created_at: OffsetDateTime,
            pub updated_at: OffsetDateTime,
        }

        impl FromRow<'_, PgRow> for GroupRow {
            fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
                let mut columns = Columns::of(row);
                Ok(Self {
                    group_id: columns.take()?,
                    $($name: columns.take()?,)+
                    dismissed_at: columns.take()?,
                    check_wanted_since: columns.take()?,
                    check_reason: columns.take()?,
                    created_at: columns.take()?,
                    updated_at: columns.take()?,
                })
            }
        }

        impl GroupRow {
            /// Returns the length of texts and ids.
            pub fn bytes(&self) -> usize {
                self.group_id.len() $(+ bytes_in!($type self.$name))+
            }
        }

        impl Texts for GroupRow {
            fn texts(&self) -> impl Iterator<Item = &str> {
                [$(text_in!($type self.$name)),+].into_iter().flatten()
            }
        }
    };
}

with_group_columns!(group_row_type);

impl FromRow<'_, PgRow> for MemberRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Self::read(&mut Columns::of(row))
    }
}

/// Maximum length of a short text, in bytes; `sql_column!` has the number too.
pub(super) const MAX_SHORT_TEXT: usize = 1024;

/// A row whose texts may be long.
pub(super) trait Texts {
    /// Returns the texts.
    fn texts(&self) -> impl Iterator<Item = &str>;

    /// True if a mark stands in place of a long text.
    fn is_marked(&self) -> bool {
        self.texts().any(|text| text.len() > MAX_SHORT_TEXT)
    }
}
