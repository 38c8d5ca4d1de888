//! What can be read of a group, and what cannot.

use std::collections::{HashMap, HashSet};
use std::fmt;

use tokio::sync::OwnedSemaphorePermit;

use crate::domain::{OpenImGroup, OpenImMember, UserId, Version};

/// What was read.
#[derive(Debug)]
pub(super) enum Fetched {
    /// All of a group that can be read, or what has changed in it.
    View(Box<View>),
    /// It is dismissed; whom it still has for members is nobody's concern. `None`: its profile is too
    /// large to be read.
    Dismissed(Option<OpenImGroup>),
    /// OpenIM does not know it.
    Unknown,
}

/// A group and its members.
#[derive(Debug)]
pub(super) struct View {
    /// `None`: as it was, or too large to be read.
    pub(super) group: Option<OpenImGroup>,
    pub(super) members: HashMap<UserId, OpenImMember>,
    /// Who is in no case a member. In a whole view nobody is who is not among the members, nor one of
    /// whom nothing is known.
    pub(super) absent: Vec<UserId>,
    /// How many of these OpenIM's own log of changes names: no list that is short makes somebody one.
    pub(super) logged_gone: u64,
    /// Who may be a member all the same.
    pub(super) unshown: Unshown,
    pub(super) is_whole: bool,
    /// `None` where there is trouble.
    pub(super) version: Option<Version>,
    /// Why it is not all of the group.
    pub(super) trouble: Option<Trouble>,
    /// Held for as long as the members are.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// Members of whom OpenIM gives no rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unshown {
    /// There are none.
    Nobody,
    /// These.
    Users(HashSet<UserId>),
    /// So many, or more, and nobody knows who.
    SomeOf(u64),
}

impl Unshown {
    /// How many they are at least.
    pub(super) fn count(&self) -> u64 {
        match self {
            Self::Nobody => 0,
            Self::Users(users) => users.len() as u64,
            Self::SomeOf(count) => *count,
        }
    }

    /// Whether this one may be a member of whom there is no row.
    pub(super) fn may_be(&self, user: &UserId) -> bool {
        match self {
            Self::Nobody => false,
            Self::Users(users) => users.contains(user),
            Self::SomeOf(_) => true,
        }
    }
}

/// Why not all of a group could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// OpenIM counts members of whom it gives no rows.
    RowsMissing {
        /// How many members it counts.
        total: u64,
        /// How many it gives.
        rows: u64,
    },
    /// So many members are larger than an answer.
    MembersTooLarge(u64),
    /// The ids of all members are.
    IdsTooLarge,
    /// The group itself is.
    ProfileTooLarge,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RowsMissing { total, rows } => {
                write!(f, "OpenIM counts {total} members and gives rows of {rows}")
            }
            Self::MembersTooLarge(1) => {
                write!(f, "one member is too large for an answer of OpenIM")
            }
            Self::MembersTooLarge(members) => {
                write!(f, "{members} members are too large for an answer of OpenIM")
            }
            Self::IdsTooLarge => {
                write!(
                    f,
                    "the list of its members' ids is too large for an answer of OpenIM"
                )
            }
            Self::ProfileTooLarge => {
                write!(
                    f,
                    "the group's own profile is too large for an answer of OpenIM"
                )
            }
        }
    }
}
