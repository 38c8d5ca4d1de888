//! Reads that are bounded by bytes.
//!
//! A text may have megabytes, and most have a few dozen bytes. To sum up the sizes of a page's rows
//! takes Postgres nearly half as long again as to read them. So an ordinary read lets only short
//! texts through, which costs little, and in place of a long one sends a mark that is longer than
//! any of these. Only where there is such a mark are the sizes asked for, and the texts of as many
//! rows as there is room for. The size of a text that is stored apart is known without reading it.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{FromRow, PgConnection, Postgres, Row};

/// Most bytes of a text that an ordinary read lets through; the statements say it in digits.
const SHORT: usize = 1024;

/// Bytes that a row of an ordinary read has at most: seven texts or marks, and two ids.
pub const SHORT_ROW: usize = 10 << 10;

/// Bytes of text on a page, unless its first row alone has more.
pub const PAGE_BYTES: usize = 4 << 20;

/// How much text a read may bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// [`SHORT_ROW`] for each row.
    Short,
    /// So many bytes in all.
    Bytes(usize),
}

/// What a read has found.
#[derive(Clone, Debug)]
pub enum Found<T> {
    /// All of it.
    Whole(T),
    /// So many bytes of text, for which there was no room.
    Long(usize),
}

/// Rows of a list, from one key on.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// In their order.
    pub rows: Vec<T>,
    /// Whether others follow.
    pub has_more: bool,
}

/// A page's two statements.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct PageSql {
    /// With short texts and marks.
    pub(in crate::store) ordinary: &'static str,
    /// With texts as far as there is room, and the bytes up to each row. It has one more
    /// parameter, the last: how much room there is.
    pub(in crate::store) sized: &'static str,
}

/// A row with texts of any length.
pub(in crate::store) trait Texts {
    /// Those that it may have.
    fn texts(&self) -> impl Iterator<Item = &str>;

    /// Whether a mark stands in place of one.
    fn is_marked(&self) -> bool {
        self.texts().any(|text| text.len() > SHORT)
    }
}

/// A row of a sized page.
struct SizedRow<T> {
    row: T,
    /// Bytes of all rows up to this one and with it.
    up_to: usize,
}

impl<T: for<'r> FromRow<'r, PgRow>> FromRow<'_, PgRow> for SizedRow<T> {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            row: T::from_row(row)?,
            up_to: bytes(row.try_get("upto")?),
        })
    }
}

/// A count of bytes, as Postgres tells it.
pub(super) fn bytes(count: i64) -> usize {
    usize::try_from(count).unwrap_or(0)
}

/// The same, for Postgres.
pub(super) fn count(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A statement and its arguments.
pub(in crate::store) type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// Reads a page of `limit` rows. `bind` gives the statements their arguments, but for the room; they
/// are to ask for one row more.
pub(in crate::store) async fn page<'q, T>(
    connection: &mut PgConnection,
    sql: PageSql,
    limit: usize,
    room: Room,
    bind: impl Fn(PgQuery<'q>) -> PgQuery<'q>,
) -> Result<Found<Page<T>>, sqlx::Error>
where
    T: Texts + for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    let (room, may_want) = match room {
        Room::Bytes(room) => (room, false),
        Room::Short => {
            let query = bind(sqlx::query(sql.ordinary)).try_map(|row: PgRow| T::from_row(&row));
            let rows = query.fetch_all(&mut *connection).await?;
            if let Some(page) = unless_marked(rows, limit, PAGE_BYTES) {
                return Ok(Found::Whole(page));
            }
            ((SHORT_ROW * limit).min(PAGE_BYTES), true)
        }
    };
    let query = bind(sqlx::query(sql.sized)).bind(count(room));
    let query = query.try_map(|row: PgRow| SizedRow::from_row(&row));
    let rows = query.fetch_all(connection).await?;
    Ok(cut(rows, limit, room, may_want, PAGE_BYTES))
}

/// As many of the rows as belong on a page of `limit` rows and `most` bytes and fit into `room`, which
/// the statement was asked with: rows that do not fit have no texts.
fn cut<T>(
    rows: Vec<SizedRow<T>>,
    limit: usize,
    room: usize,
    may_want: bool,
    most: usize,
) -> Found<Page<T>> {
    let count = rows.len();
    let of_page = |(place, row): &(usize, &SizedRow<T>)| *place == 0 || row.up_to <= most;
    let on_page = rows.iter().enumerate().take(limit).take_while(of_page);
    let (mut fits, mut bytes) = (0, 0);
    for (_, row) in on_page {
        fits += usize::from(row.up_to <= room);
        bytes = row.up_to;
    }
    // Rows may have grown since the room was made; what fits is a page too.
    if bytes > room && (may_want || fits == 0) {
        return Found::Long(bytes);
    }
    Found::Whole(Page {
        has_more: count > fits,
        rows: rows.into_iter().take(fits).map(|sized| sized.row).collect(),
    })
}

/// As many of the rows as belong on a page of `limit` rows and `most` bytes of text, unless one is
/// marked.
fn unless_marked<T: Texts>(mut rows: Vec<T>, limit: usize, most: usize) -> Option<Page<T>> {
    if rows.iter().any(Texts::is_marked) {
        return None;
    }
    let (count, mut bytes) = (rows.len(), 0);
    let fits = rows.iter().take(limit).take_while(|row| {
        bytes += row.texts().map(str::len).sum::<usize>();
        bytes <= most
    });
    // A row without marks has less than a page.
    let fits = fits.count();
    rows.truncate(fits);
    rows.shrink_to_fit();
    Some(Page {
        has_more: count > fits,
        rows,
    })
}

/// The statements of pages, which are made of: the name of a macro that makes the list of the columns
/// with texts, the other columns (and their names, where they are made), the key within the page, the
/// parameter of the room, and the rest.
macro_rules! pages {
    ($(
        $(#[$doc:meta])*
        $name:ident = $columns:ident + $others:literal $(as $names:literal)?,
            key $key:literal, room $room:literal, $from:literal;
    )+) => {
        $($(#[$doc])* const $name: $crate::store::read::PageSql = $crate::store::read::PageSql {
            ordinary: concat!("SELECT ", $columns!(short), ", ", $others, $from),
            sized: concat!(
                "SELECT ", $columns!(if concat!("upto <= ", $room)), ", ",
                pages!(@last $others $(, $names)?), ", upto
  FROM (SELECT page.*,
               (sum(bytes) OVER (ORDER BY ", $key, " ROWS UNBOUNDED PRECEDING))::bigint AS upto
          FROM (SELECT ", $columns!(plain), ", ", $others, ", ", $columns!(bytes), " AS bytes",
                $from, ") AS page) AS page
 ORDER BY ", $key
            ),
        };)+
        /// Every statement of these, by name.
        pub(super) const PAGES: &[(&str, &str)] = &[$(
            (stringify!($name), $name.ordinary),
            (concat!(stringify!($name), "_SIZED"), $name.sized),
        )+];
    };
    (@last $others:literal) => { $others };
    (@last $others:literal, $names:literal) => { $names };
}

/// The columns of a member that every statement has, in the order in which they are read: `short`
/// or marked; `plain`; with texts `if` a condition holds; or how many bytes these have.
macro_rules! member_columns {
    (short) => {
        "group_id, user_id,
       CASE WHEN octet_length(nickname) > 1024 THEN repeat('!', 1025) ELSE nickname END AS nickname,
       CASE WHEN octet_length(display_nickname) > 1024 THEN repeat('!', 1025) ELSE display_nickname END AS display_nickname,
       CASE WHEN octet_length(face_url) > 1024 THEN repeat('!', 1025) ELSE face_url END AS face_url,
       CASE WHEN octet_length(display_face_url) > 1024 THEN repeat('!', 1025) ELSE display_face_url END AS display_face_url,
       role_level,
       CASE WHEN octet_length(ex) > 1024 THEN repeat('!', 1025) ELSE ex END AS ex,
       joined_at, join_source,
       CASE WHEN octet_length(inviter_user_id) > 1024 THEN repeat('!', 1025) ELSE inviter_user_id END AS inviter_user_id,
       CASE WHEN octet_length(operator_user_id) > 1024 THEN repeat('!', 1025) ELSE operator_user_id END AS operator_user_id,
       mute_end_at"
    };
    (plain) => {
        "group_id, user_id, nickname, display_nickname, face_url, display_face_url,
       role_level, ex, joined_at, join_source, inviter_user_id, operator_user_id, mute_end_at"
    };
    (if $fits:expr) => {
        concat!(
            "group_id, user_id,
       CASE WHEN ", $fits, " THEN nickname END AS nickname,
       CASE WHEN ", $fits, " THEN display_nickname END AS display_nickname,
       CASE WHEN ", $fits, " THEN face_url END AS face_url,
       CASE WHEN ", $fits, " THEN display_face_url END AS display_face_url,
       role_level,
       CASE WHEN ", $fits, " THEN ex END AS ex,
       joined_at, join_source,
       CASE WHEN ", $fits, " THEN inviter_user_id END AS inviter_user_id,
       CASE WHEN ", $fits, " THEN operator_user_id END AS operator_user_id,
       mute_end_at"
        )
    };
    (bytes) => {
        "octet_length(group_id)::bigint + octet_length(user_id)
           + COALESCE(octet_length(nickname), 0) + COALESCE(octet_length(display_nickname), 0)
           + COALESCE(octet_length(face_url), 0) + COALESCE(octet_length(display_face_url), 0)
           + COALESCE(octet_length(ex), 0) + COALESCE(octet_length(inviter_user_id), 0)
           + COALESCE(octet_length(operator_user_id), 0)"
    };
}

/// The same of a group.
macro_rules! group_columns {
    (short) => {
        "group_id,
       CASE WHEN octet_length(name) > 1024 THEN repeat('!', 1025) ELSE name END AS name,
       CASE WHEN octet_length(notification) > 1024 THEN repeat('!', 1025) ELSE notification END AS notification,
       CASE WHEN octet_length(introduction) > 1024 THEN repeat('!', 1025) ELSE introduction END AS introduction,
       CASE WHEN octet_length(face_url) > 1024 THEN repeat('!', 1025) ELSE face_url END AS face_url,
       owner_user_id,
       CASE WHEN octet_length(ex) > 1024 THEN repeat('!', 1025) ELSE ex END AS ex,
       status, group_type, need_verification, look_member_info, apply_member_friend,
       created_in_openim_at, CASE WHEN status = 2 THEN dismissed_at END AS dismissed_at"
    };
    (plain) => {
        "group_id, name, notification, introduction, face_url, owner_user_id, ex, status,
       group_type, need_verification, look_member_info, apply_member_friend, created_in_openim_at,
       CASE WHEN status = 2 THEN dismissed_at END AS dismissed_at"
    };
    (if $fits:expr) => {
        concat!(
            "group_id,
       CASE WHEN ", $fits, " THEN name END AS name,
       CASE WHEN ", $fits, " THEN notification END AS notification,
       CASE WHEN ", $fits, " THEN introduction END AS introduction,
       CASE WHEN ", $fits, " THEN face_url END AS face_url,
       owner_user_id,
       CASE WHEN ", $fits, " THEN ex END AS ex,
       status, group_type, need_verification, look_member_info, apply_member_friend,
       created_in_openim_at, dismissed_at"
        )
    };
    (bytes) => {
        "octet_length(group_id)::bigint + COALESCE(octet_length(name), 0)
           + COALESCE(octet_length(notification), 0) + COALESCE(octet_length(introduction), 0)
           + COALESCE(octet_length(face_url), 0) + COALESCE(octet_length(owner_user_id), 0)
           + COALESCE(octet_length(ex), 0)"
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(bytes: &[usize]) -> Vec<SizedRow<usize>> {
        let mut up_to = 0;
        let rows = bytes.iter().enumerate().map(|(row, bytes)| {
            up_to += bytes;
            SizedRow { row, up_to }
        });
        rows.collect()
    }

    #[track_caller]
    fn assert_page(bytes: &[usize], limit: usize, room: usize, expected: usize, more: bool) {
        match cut(rows(bytes), limit, room, false, 100) {
            Found::Whole(page) => {
                let expected: Vec<usize> = (0..expected).collect();
                assert_eq!((page.rows, page.has_more), (expected, more));
            }
            Found::Long(bytes) => panic!("{bytes} wanted"),
        }
    }

    #[track_caller]
    fn assert_wants(bytes: &[usize], limit: usize, room: usize, expected: usize) {
        match cut(rows(bytes), limit, room, true, 100) {
            Found::Whole(page) => panic!("{page:?}"),
            Found::Long(bytes) => assert_eq!(bytes, expected),
        }
    }

    #[test]
    fn a_page_ends_by_rows_or_by_bytes_and_has_one_row_at_least() {
        assert_page(&[], 2, 10, 0, false);
        assert_page(&[1, 2], 2, 10, 2, false);
        assert_page(&[1, 2, 3], 2, 10, 2, true);
        assert_page(&[60, 40, 1], 9, 100, 2, true);
        assert_page(&[60, 41, 1], 9, 100, 1, true);
        // The first alone may have more.
        assert_page(&[500, 1], 9, 500, 1, true);
        assert_page(&[500], 9, 500, 1, false);
    }

    #[test]
    fn more_room_is_wanted_for_what_is_on_the_page_alone() {
        assert_wants(&[20, 30, 60], 9, 10, 50);
        assert_wants(&[20, 30, 60], 1, 10, 20);
        assert_wants(&[20, 30, 60], 9, 49, 50);
        assert_wants(&[500, 1], 9, 100, 500);
    }

    #[test]
    fn where_rows_have_grown_since_the_room_was_made_what_fits_is_a_page() {
        assert_page(&[60, 20, 41], 9, 80, 2, true);
        match cut(rows(&[501, 1]), 9, 500, false, 100) {
            Found::Whole(page) => panic!("{page:?}"),
            Found::Long(bytes) => assert_eq!(bytes, 501),
        }
    }
}
