//! Versions of the model of OpenIM: the changes of a group, for calls that ask for new ones.

use std::collections::BTreeMap;

/// With more changes than these nobody is told them one by one.
const MOST: usize = 200;

/// The counter of a group's changes, and what became of each member last.
#[derive(Clone, Debug)]
pub struct Versions {
    /// Id of a counter, of 24 hexadecimal digits. A new counter has another one.
    pub id: String,
    pub version: u64,
    members: BTreeMap<String, (u64, Change)>,
    /// Time of the last change of the group's profile or status.
    group: Option<u64>,
}

/// Change of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Insert,
    Update,
    Delete,
}

/// Changes since a version.
pub(super) enum Since<'a> {
    /// The changes are not known: the whole group has to be read.
    Full,
    Changes {
        members: Vec<(&'a str, Change)>,
        group: bool,
    },
}

impl Versions {
    /// A counter that begins with these members.
    pub(super) fn new<'a>(id: String, members: impl IntoIterator<Item = &'a String>) -> Self {
        let members = members.into_iter();
        Self {
            id,
            version: 1,
            members: members
                .map(|user| (user.clone(), (1, Change::Insert)))
                .collect(),
            group: None,
        }
    }

    /// A counter that has come so far, of which the past is not known.
    pub(super) fn at(id: String, version: u64) -> Self {
        Self {
            id,
            version,
            members: BTreeMap::new(),
            group: None,
        }
    }

    /// A change of one or more members.
    pub(super) fn members_changed<'a>(
        &mut self,
        users: impl IntoIterator<Item = &'a str>,
        change: Change,
    ) {
        self.version += 1;
        let entries = users
            .into_iter()
            .map(|user| (user.to_owned(), (self.version, change)));
        self.members.extend(entries);
    }

    /// The profile or the status has changed.
    pub(super) fn group_changed(&mut self) {
        self.version += 1;
        self.group = Some(self.version);
    }

    pub(super) fn since(&self, id: &str, version: u64) -> Since<'_> {
        if id != self.id || version == 0 || version > self.version {
            return Since::Full;
        }
        let members = self.members.iter();
        let members: Vec<_> = members
            .filter(|(_, (at, _))| *at > version)
            .map(|(user, (_, change))| (user.as_str(), *change))
            .collect();
        let group = self.group.is_some_and(|at| at > version);
        if members.len() + usize::from(group) > MOST {
            return Since::Full;
        }
        Since::Changes { members, group }
    }
}
