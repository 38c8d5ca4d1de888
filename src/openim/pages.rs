//! Questions that are made smaller where the answer is too large for OpenIM.
//!
//! Its services hand each other answers of 4 or 8 MiB at most, and say so with an error. How many rows
//! that is, nobody knows before: a member's `ex` alone may have 5 MiB.

/// Rows on a page, beginning with the most. Each divides the one before, for pages are asked for by
/// number: whatever is left of a page that is too large begins at a whole smaller one.
const SIZES: [u64; 7] = [1000, 500, 250, 125, 25, 5, 1];
/// After so many pages in a row the next is larger again: of pages that are all too large only one in
/// five is asked for in vain, and after one odd row the others do not come one by one for long.
const RUN: u32 = 4;

/// Groups or members on the largest page.
pub(super) const PAGE: usize = SIZES[0] as usize;

/// A page to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// From 1.
    pub(super) number: u64,
    pub(super) size: u64,
}

/// A way through a list, page by page.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// Rows before the page.
    start: u64,
    /// Which of the sizes.
    step: usize,
    /// Pages of this size that came one after the other.
    run: u32,
}

impl Pages {
    fn size(&self) -> u64 {
        SIZES[self.step]
    }

    /// The page to ask for.
    pub(super) fn page(&self) -> Page {
        Page {
            number: self.start / self.size() + 1,
            size: self.size(),
        }
    }

    /// Rows that are behind.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// The page has come.
    pub(super) fn given(&mut self) {
        self.start += self.size();
        self.run += 1;
        self.grow();
    }

    /// The page is too large. Where it has one row, that one is left out: its place in the list, from
    /// 0.
    pub(super) fn too_large(&mut self) -> Option<u64> {
        if self.step + 1 < SIZES.len() {
            self.step += 1;
            self.run = 0;
            return None;
        }
        let place = self.start;
        self.start += 1;
        self.grow();
        Some(place)
    }

    fn grow(&mut self) {
        let larger = self.step.checked_sub(1).map(|step| (step, SIZES[step]));
        if let Some((step, size)) = larger
            && self.run >= RUN
            && self.start.is_multiple_of(size)
        {
            self.step = step;
            self.run = 0;
        }
    }
}

/// Things that are asked about together, in halves where that is too much.
#[derive(Debug)]
pub(super) struct Halves<'a, T> {
    /// The next is the last.
    parts: Vec<&'a [T]>,
}

impl<'a, T> Halves<'a, T> {
    /// At most so many at a time.
    pub(super) fn of(all: &'a [T], most: usize) -> Self {
        let parts = all.chunks(most);
        Self {
            parts: parts.rev().collect(),
        }
    }

    /// The answer about these is too large. One that is alone is left out, and given.
    pub(super) fn too_large(&mut self, some: &'a [T]) -> Option<&'a T> {
        match some {
            [] => None,
            [one] => Some(one),
            more => {
                let (first, second) = more.split_at(more.len() / 2);
                self.parts.extend([second, first]);
                None
            }
        }
    }
}

impl<'a, T> Iterator for Halves<'a, T> {
    type Item = &'a [T];

    fn next(&mut self) -> Option<&'a [T]> {
        self.parts.pop()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_size_divides_the_one_before() {
        for pair in SIZES.windows(2) {
            assert!(pair[0].is_multiple_of(pair[1]) && pair[0] > pair[1]);
        }
        assert_eq!(SIZES.last(), Some(&1));
    }

    /// Reads rows of these sizes through answers that hold so much: the places that came, in their
    /// order, those that were left out, and how many pages were asked for.
    fn read(rows: &[u64], most: u64) -> (Vec<u64>, Vec<u64>, usize) {
        let (mut given, mut left, mut calls) = (vec![], vec![], 0);
        let mut pages = Pages::default();
        while pages.start() < rows.len() as u64 {
            let Page { number, size } = pages.page();
            let first = (number - 1) * size;
            assert_eq!(first, pages.start());
            let end = (first + size).min(rows.len() as u64);
            let sum: u64 = (first..end)
                .map(|row| rows[usize::try_from(row).unwrap()])
                .sum();
            calls += 1;
            if sum > most {
                left.extend(pages.too_large());
            } else {
                given.extend(first..end);
                pages.given();
            }
        }
        (given, left, calls)
    }

    #[test]
    fn one_row_that_is_too_large_costs_a_few_pages_more() {
        let mut rows = vec![1; 100_000];
        rows[31_337] = 4000;
        let (given, left, calls) = read(&rows, 3000);
        assert_eq!((given.len(), left), (99_999, vec![31_337]));
        assert!(calls < 100 + 60, "{calls}");
    }

    #[test]
    fn rows_that_are_all_large_are_read_in_smaller_pages() {
        let (given, left, calls) = read(&vec![12; 10_000], 12 * 400);
        assert_eq!((given.len(), left), (10_000, vec![]));
        // 40 pages of 250.
        assert!(calls <= 55, "{calls}");
    }

    #[test]
    fn a_list_of_which_nothing_can_be_read_comes_to_its_end() {
        let (given, left, calls) = read(&[9; 30], 8);
        assert_eq!((given.len(), left.len()), (0, 30));
        assert_eq!(calls, 6 + 30);
    }

    proptest! {
        #[test]
        fn every_row_comes_once_or_is_too_large_alone(
            rows in prop::collection::vec(prop_oneof![9 => 0_u64..20, 1 => 900_u64..1100], 0..4000),
        ) {
            let (given, left, _) = read(&rows, 1000);
            let is_large = |row: &u64| rows[usize::try_from(*row).unwrap()] > 1000;
            let all: Vec<u64> = (0..rows.len() as u64).collect();
            let (large, small): (Vec<u64>, Vec<u64>) = all.into_iter().partition(is_large);
            prop_assert_eq!(given, small);
            prop_assert_eq!(left, large);
        }

        #[test]
        fn halves_leave_out_what_is_too_large_alone(
            all in prop::collection::vec(prop_oneof![9 => 0_u64..20, 1 => 90_u64..110], 0..500),
        ) {
            let (mut given, mut left) = (vec![], vec![]);
            let mut halves = Halves::of(&all, 200);
            while let Some(some) = halves.next() {
                assert!((1..=200).contains(&some.len()));
                if some.iter().sum::<u64>() > 100 {
                    left.extend(halves.too_large(some).copied());
                } else {
                    given.extend(some.iter().copied());
                }
            }
            let (large, small): (Vec<u64>, Vec<u64>) = all.iter().partition(|row| **row > 100);
            prop_assert_eq!(given, small);
            prop_assert_eq!(left, large);
        }
    }
}
