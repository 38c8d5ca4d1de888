//! Reads of the mirror.
//!
//! Every page starts after a key, the first one after the empty key, which is below every id. A generic plan for `$n IS
//! NULL OR ...` would read the whole group. (It does no harm as a condition on rows that are read anyway.) Pages
//! compare whole rows, `(group_id, user_id) > ($1, $2) AND group_id <= $1`, and not `group_id = $1 AND user_id > $2`:
//! with an equality the planner may take the order from the other index, believe that the group's members are evenly
//! spread in it, and read the whole table.
//!
//! A dismissal ends all memberships, and for a while the members' rows do not say so. So reads look at
//! `groups_emptying`, an index that is nearly always empty.
//!
//! Pages of rows with a limit of bytes.
//!
//! Most texts have a few dozen bytes, but one can have megabytes. The sum of the sizes of a page makes a read nearly
//! half as long again. So an ordinary read returns short texts, and in place of a long text a mark that is longer than
//! any short one. Only a page with a mark is read again: with sizes, and with the texts of as many rows as there is
//! room for. Postgres knows the size of a long text without reading it.

/// Makes the two statements of each page, from: the macro with the columns of a row; more columns, and their names if
/// they are computed; the key within the page; the parameter of the room; the rest.
macro_rules! pages {
    ($(
        $(#[$doc:meta])*
        $name:ident = $row:ident $(+ $more:literal as $names:literal)?,
            key $key:literal, room $room:literal, $from:expr;
    )+) => {
        $($(#[$doc])* const $name: $crate::store::read::PageSql = $crate::store::read::PageSql {
            ordinary: concat!("SELECT ", $row!(short), $(", ", $more,)? $from),
            sized: concat!(
                "SELECT ", $row!((texts_if concat!("upto <= ", $room))), $(", ", $names,)? ", upto
  FROM (SELECT page.*,
               (sum(bytes) OVER (ORDER BY ", $key, " ROWS UNBOUNDED PRECEDING))::bigint AS upto
          FROM (SELECT ", $row!(plain), ", ", $($more, ", ",)? $row!(bytes), " AS bytes",
                $from, ") AS page) AS page
 ORDER BY ", $key
            ),
        };)+
        /// All statements of these pages, with their names.
        pub(in crate::store) const PAGES: &[(&str, &str)] = &[$(
            (stringify!($name), $name.ordinary),
            (concat!(stringify!($name), "_SIZED"), $name.sized),
        )+];
    };
}

pub(super) mod groups;
pub(super) mod members;

use sqlx::PgConnection;
use sqlx::postgres::PgRow;

use super::columns::{Columns, PageRow, PgQuery, SHORT_ROW, bytes, count, is_marked};

pub use groups::{GroupFilter, GroupSummary, RoleCount};
pub use members::{MemberFilter, MemberState};

/// Maximum size of the texts of a page, in bytes. The first row alone can have more.
pub const PAGE_BYTES: usize = 4 << 20;

/// Limit of the texts of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// [`SHORT_ROW`] for each row.
    Short,
    /// This number of bytes in all.
    Bytes(usize),
}

/// Result of a read with limited room.
#[derive(Clone, Debug)]
pub enum Found<T> {
    /// The rows.
    Whole(T),
    /// There was no room for the texts, which have this number of bytes.
    Long(usize),
}

/// Rows of a list, starting after a key.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The rows, in the order of the list.
    pub rows: Vec<T>,
    /// True if more rows follow.
    pub has_more: bool,
}

/// The two statements of a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageSql {
    /// Reads short texts and marks.
    pub(super) ordinary: &'static str,
    /// Reads the texts for which there is room, and the sum of bytes up to each row. Its last parameter is the room.
    pub(super) sized: &'static str,
}

/// A row of a sized page.
struct SizedRow<T> {
    row: T,
    /// Bytes of all rows up to and including this one.
    up_to: usize,
}

/// Reads a page of `limit` rows. `bind` binds all parameters except the room. The statements must read one row more
/// than `limit`.
pub(super) async fn page<'q, T>(
    connection: &mut PgConnection,
    sql: PageSql,
    limit: usize,
    room: Room,
    bind: impl Fn(PgQuery<'q>) -> PgQuery<'q>,
) -> Result<Found<Page<T>>, sqlx::Error>
where
    T: PageRow + Send + Unpin,
{
    let (room, may_ask) = match room {
        Room::Bytes(room) => (room, false),
        Room::Short => {
            let query = bind(sqlx::query(sql.ordinary));
            let query = query.try_map(|row: PgRow| T::read(&mut Columns::of(&row)));
            let rows = query.fetch_all(&mut *connection).await?;
            if let Some(page) = unless_marked(rows, limit, PAGE_BYTES) {
                return Ok(Found::Whole(page));
            }
            ((SHORT_ROW * limit).min(PAGE_BYTES), true)
        }
    };
    let query = bind(sqlx::query(sql.sized)).bind(count(room));
    let query = query.try_map(|row: PgRow| {
        let mut columns = Columns::of(&row);
        let row = T::read(&mut columns)?;
        let up_to = bytes(columns.take()?);
        Ok(SizedRow { row, up_to })
    });
    let rows = query.fetch_all(connection).await?;
    Ok(cut(rows, limit, room, may_ask, PAGE_BYTES))
}

/// Cuts rows to a page of `limit` rows and `max_bytes` bytes that fits into `room`, the room of the statement: it has
/// read no texts of rows that do not fit.
fn cut<T>(
    rows: Vec<SizedRow<T>>,
    limit: usize,
    room: usize,
    may_ask: bool,
    max_bytes: usize,
) -> Found<Page<T>> {
    let count = rows.len();
    let of_page = |(place, row): &(usize, &SizedRow<T>)| *place == 0 || row.up_to <= max_bytes;
    let on_page = rows.iter().enumerate().take(limit).take_while(of_page);
    let (mut fits, mut bytes) = (0, 0);
    for (_, row) in on_page {
        fits += usize::from(row.up_to <= room);
        bytes = row.up_to;
    }
    // Rows may have grown since the room was chosen. The part that fits is a page too.
    if bytes > room && (may_ask || fits == 0) {
        return Found::Long(bytes);
    }
    Found::Whole(Page {
        has_more: count > fits,
        rows: rows.into_iter().take(fits).map(|sized| sized.row).collect(),
    })
}

/// Cuts rows to a page of `limit` rows and `max_bytes` bytes of text. `None`: a row has a mark.
fn unless_marked<T: PageRow>(mut rows: Vec<T>, limit: usize, max_bytes: usize) -> Option<Page<T>> {
    if rows.iter().any(is_marked) {
        return None;
    }
    let (count, mut bytes) = (rows.len(), 0);
    let fits = rows.iter().take(limit).take_while(|row| {
        bytes += row.texts().map(str::len).sum::<usize>();
        bytes <= max_bytes
    });
    // The first row always fits: without marks it is smaller than a page.
    let fits = fits.count();
    rows.truncate(fits);
    rows.shrink_to_fit();
    Some(Page {
        has_more: count > fits,
        rows,
    })
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
    fn assert_asks(bytes: &[usize], limit: usize, room: usize, expected: usize) {
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
        // The first row alone can have more.
        assert_page(&[500, 1], 9, 500, 1, true);
        assert_page(&[500], 9, 500, 1, false);
    }

    #[test]
    fn the_room_asked_for_is_that_of_the_page() {
        assert_asks(&[20, 30, 60], 9, 10, 50);
        assert_asks(&[20, 30, 60], 1, 10, 20);
        assert_asks(&[20, 30, 60], 9, 49, 50);
        assert_asks(&[500, 1], 9, 100, 500);
    }

    #[test]
    fn rows_that_have_grown_make_a_shorter_page() {
        assert_page(&[60, 20, 41], 9, 80, 2, true);
        match cut(rows(&[501, 1]), 9, 500, false, 100) {
            Found::Whole(page) => panic!("{page:?}"),
            Found::Long(bytes) => assert_eq!(bytes, 501),
        }
    }
}
