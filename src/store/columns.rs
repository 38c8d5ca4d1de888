//! The columns of members and groups. Each list stands here once; statements, reads and writes are made from it.
//!
//! A column is `(number, type, column, field)`: the number of its parameter in the statement that writes whole rows,
//! its type, its name, and its field in the domain. The type `id` is a text that is never long. Numbers and times come
//! before texts: comparisons of rows then decide by them first and read long texts only if they must.
//!
//! To add a column to a read and a write: add it to a list here, with the next number.

use sqlx::postgres::{PgArguments, PgRow, PgTypeInfo, PgValueRef};
use sqlx::query::Query;
use sqlx::{Decode, Postgres, Row, Type};
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

/// Gives the columns of a group to a macro. `dismissed_at`, the key and bookkeeping are not in the list.
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

/// Makes a list of SQL, each item after a comma, in a form of `sql_column!`.
macro_rules! sql_columns {
    ([$(($number:literal $type:ident $name:ident $($field:ident).+))+] $form:tt) => {
        concat!($(sql_column!($form $type stringify!($name), $number)),+)
    };
}

/// Makes the SQL of one column in a form.
macro_rules! sql_column {
    // The name.
    (plain $type:ident $name:expr, $number:literal) => {
        concat!(", ", $name)
    };
    // The name in a table.
    ((of $table:literal) $type:ident $name:expr, $number:literal) => {
        concat!(", ", $table, ".", $name)
    };
    // A short text, or in place of a long one a mark that is longer than a short text.
    (short text $name:expr, $number:literal) => {
        concat!(
            ", CASE WHEN octet_length(",
            $name,
            ") > 1024 THEN repeat('!', 1025) ELSE ",
            $name,
            " END AS ",
            $name
        )
    };
    // A text if a condition holds.
    ((texts_if $condition:expr) text $name:expr, $number:literal) => {
        concat!(
            ", CASE WHEN ",
            $condition,
            " THEN ",
            $name,
            " END AS ",
            $name
        )
    };
    // The length of a text, to be added to a number.
    (bytes integer $name:expr, $number:literal) => {
        ""
    };
    (bytes timestamptz $name:expr, $number:literal) => {
        ""
    };
    (bytes $type:ident $name:expr, $number:literal) => {
        concat!(" + COALESCE(octet_length(", $name, "), 0)")
    };
    // The value to write. A text can be kept as it is stored.
    (written text $name:expr, $number:literal) => {
        concat!(
            ", CASE WHEN keeps THEN kept.",
            $name,
            " ELSE written.",
            $name,
            " END"
        )
    };
    (written $type:ident $name:expr, $number:literal) => {
        concat!(", written.", $name)
    };
    // The parameter: an array, or a single value.
    (array id $name:expr, $number:literal) => {
        concat!(", $", $number, "::text[]")
    };
    (array $type:ident $name:expr, $number:literal) => {
        concat!(", $", $number, "::", stringify!($type), "[]")
    };
    (value $type:ident $name:expr, $number:literal) => {
        concat!(", $", $number, "::", stringify!($type))
    };
    // The assignment of an upsert.
    (set $type:ident $name:expr, $number:literal) => {
        concat!(", ", $name, " = EXCLUDED.", $name)
    };
    // The value of a patch, and its assignment. NULL leaves the stored value.
    (patched $type:ident $name:expr, $number:literal) => {
        concat!(", COALESCE(patch.", $name, ", stored.", $name, ")")
    };
    (set_patched $type:ident $name:expr, $number:literal) => {
        concat!(
            ", ",
            $name,
            " = ",
            "COALESCE(patch.",
            $name,
            ", stored.",
            $name,
            ")"
        )
    };
    // A number, a time or an id is always short.
    ($form:tt $type:ident $name:expr, $number:literal) => {
        concat!(", ", $name)
    };
}

/// SQL of the columns of members, each after a comma.
macro_rules! member_columns {
    ($form:tt) => { with_member_columns!(sql_columns $form) };
}

/// SQL of the columns of patches, each after a comma.
macro_rules! patch_columns {
    ($form:tt) => { with_patch_columns!(sql_columns $form) };
}

/// SQL of the columns of groups, each after a comma.
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

/// SQL of a [`MemberRow`] of the group `$1`. At a dismissal all members leave, and for a while their rows do not say
/// so.
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

/// Reads columns of a row one after the other. To find a column by its name takes as long as to read it.
pub(super) struct Columns<'r> {
    row: &'r PgRow,
    next: usize,
}

impl<'r> Columns<'r> {
    pub(super) fn of(row: &'r PgRow) -> Self {
        Self { row, next: 0 }
    }

    /// Reads the next column. Inline: a page has 1,700 columns.
    #[inline]
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

/// A value of a column. Texts and ids have a length.
trait Value {
    fn text(&self) -> Option<&str> {
        None
    }

    fn forget_text(&mut self) {}
}

impl Value for Option<i32> {}
impl Value for Option<OffsetDateTime> {}
impl Value for Option<String> {
    fn text(&self) -> Option<&str> {
        self.as_deref()
    }

    fn forget_text(&mut self) {
        *self = None;
    }
}

/// A row whose texts may be long.
pub(super) trait PageRow: Sized {
    /// Reads the columns.
    fn read(columns: &mut Columns<'_>) -> Result<Self, sqlx::Error>;

    /// Returns the texts.
    fn texts(&self) -> impl Iterator<Item = &str>;
}

/// Maximum size of a text of an ordinary read, in bytes; `sql_column!` has the number too.
const MAX_SHORT_TEXT: usize = 1024;

/// Maximum size of a row of an ordinary read, in bytes: seven texts or marks, and two ids.
pub const SHORT_ROW: usize = 10 << 10;

/// Converts a number of bytes from Postgres.
pub(super) fn bytes(count: i64) -> usize {
    usize::try_from(count).unwrap_or(0)
}

/// Converts a number of bytes for Postgres.
pub(super) fn count(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// True if a mark stands in place of a long text.
#[inline]
pub(super) fn is_marked<T: PageRow>(row: &T) -> bool {
    row.texts().any(|text| text.len() > MAX_SHORT_TEXT)
}

/// Makes the type of a row as readers see it: the key, the listed columns, and more.
macro_rules! row_type {
    (
        [$(($number:literal $type:ident $name:ident $($field:ident).+))+]
        $(#[$doc:meta])*
        $row:ident { $($key:ident)+ } { $($(#[$more_doc:meta])* $more:ident: $more_type:ty,)+ }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        #[expect(missing_docs, reason = "the columns; see migrations/")]
        pub struct $row {
            $(pub $key: String,)+
            $(pub $name: Option<rust_type!($type)>,)+
            $($(#[$more_doc])* pub $more: $more_type,)+
        }

        impl PageRow for $row {
            fn read(columns: &mut Columns<'_>) -> Result<Self, sqlx::Error> {
                Ok(Self {
                    $($key: columns.take()?,)+
                    $($name: columns.take()?,)+
                    $($more: columns.take()?,)+
                })
            }

            fn texts(&self) -> impl Iterator<Item = &str> {
                [$(self.$name.text()),+].into_iter().flatten()
            }
        }

        impl $row {
            /// Returns the length of texts and ids.
            pub fn bytes(&self) -> usize {
                let texts = self.texts().map(str::len).sum::<usize>();
                texts $(+ self.$key.len())+
            }
        }
    };
}

with_member_columns! { row_type
    /// A member as readers see it.
    MemberRow { group_id user_id } {
        /// Time when the member left, or when the group was dismissed.
        left_at: Option<OffsetDateTime>,
        created_at: OffsetDateTime,
        updated_at: OffsetDateTime,
    }
}

with_group_columns! { row_type
    /// A group as readers see it.
    GroupRow { group_id } {
        /// Present only while the group is dismissed.
        dismissed_at: Option<OffsetDateTime>,
        check_wanted_since: Option<OffsetDateTime>,
        check_reason: Option<String>,
        created_at: OffsetDateTime,
        updated_at: OffsetDateTime,
    }
}

/// Deletes texts of a row.
macro_rules! forget_columns {
    ([$(($number:literal $type:ident $name:ident $($field:ident).+))+] $row:ident) => {
        $($row.$name.forget_text();)+
    };
}

impl MemberRow {
    /// Frees the memory of texts and ids.
    pub(super) fn forget_texts(&mut self) {
        let row = self;
        (row.group_id, row.user_id) = (String::new(), String::new());
        with_member_columns!(forget_columns row);
    }
}
