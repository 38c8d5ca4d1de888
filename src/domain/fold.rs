//! What of the changes that come together can be written as one: patches of one member are one
//! patch, as long as nothing else happens to their group.

use std::collections::HashSet;

use super::{Change, GroupId, MemberPatch, Text, UserId};

/// Changes sorted by how they can be written. No group is in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded<'a> {
    /// One a member, in bytewise order of group and user. Writing these is the same as writing the
    /// patches that they were made of one after the other, in the order these had; but that what
    /// OpenIM shows in place of an empty text stays known where that was filled and emptied between.
    ///
    /// The order of the keys is for whoever writes: two who lock the same rows in the same order
    /// never wait for each other in a circle.
    pub patches: Vec<FoldedPatch<'a>>,
    /// All changes of groups of which not all are patches, in their order.
    pub others: Vec<&'a Change>,
}

/// What several patches of one member change, in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of MemberPatch")]
pub struct FoldedPatch<'a> {
    pub group_id: &'a GroupId,
    pub user_id: &'a UserId,
    pub nickname: Option<&'a Text>,
    pub face_url: Option<&'a Text>,
    pub role_level: Option<i32>,
    pub ex: Option<&'a Text>,
}

impl<'a> FoldedPatch<'a> {
    fn new(group_id: &'a GroupId, patch: &'a MemberPatch) -> Self {
        let MemberPatch {
            user_id,
            nickname,
            face_url,
            role_level,
            ex,
        } = patch;
        Self {
            group_id,
            user_id,
            nickname: nickname.as_ref(),
            face_url: face_url.as_ref(),
            role_level: *role_level,
            ex: ex.as_ref(),
        }
    }

    /// The member.
    pub fn key(&self) -> (&'a GroupId, &'a UserId) {
        (self.group_id, self.user_id)
    }

    /// Takes in a later patch of the same member: what is present there counts.
    fn then(&mut self, later: Self) {
        self.nickname = later.nickname.or(self.nickname);
        self.face_url = later.face_url.or(self.face_url);
        self.role_level = later.role_level.or(self.role_level);
        self.ex = later.ex.or(self.ex);
    }
}

/// Folds what can be.
pub fn fold<'a>(changes: impl IntoIterator<Item = &'a Change> + Clone) -> Folded<'a> {
    let not_patches = changes
        .clone()
        .into_iter()
        .filter(|c| c.as_patch().is_none());
    let with_others: HashSet<&GroupId> = not_patches.map(|change| &change.group_id).collect();
    let mut patches = Vec::new();
    let mut others = Vec::new();
    for change in changes {
        let is_alone = with_others.is_empty() || !with_others.contains(&change.group_id);
        match change.as_patch().filter(|_| is_alone) {
            Some(patch) => patches.push(FoldedPatch::new(&change.group_id, patch)),
            None => others.push(change),
        }
    }
    // Stable: patches of one member keep their order.
    patches.sort_by_key(FoldedPatch::key);
    patches.dedup_by(|later, earlier| {
        let same = later.key() == earlier.key();
        if same {
            earlier.then(later.clone());
        }
        same
    });
    Folded { patches, others }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::OffsetDateTime;

    use super::super::{CheckReason, Event, GroupRows, Member, Users, apply};
    use super::*;

    /// What is stored after one change after the other, of groups of members who are all there.
    #[derive(Debug, Default, PartialEq)]
    struct Mirror(std::collections::BTreeMap<GroupId, GroupRows>);

    impl Mirror {
        fn apply(&mut self, change: &Change) {
            // Which of two reasons is the last is nobody's concern.
            let reason = CheckReason::CallbackLost;
            let rows = self.0.entry(change.group_id.clone()).or_insert_with(|| {
                let member = |id: &&str| (user(id), Member::fresh(None));
                GroupRows {
                    group: Some(Default::default()),
                    members: IDS.iter().map(member).collect(),
                    ..GroupRows::default()
                }
            });
            apply(rows, change);
            rows.check = rows.check.and(Some(reason));
        }

        fn of<'a>(changes: impl IntoIterator<Item = &'a Change>) -> Self {
            let mut mirror = Self::default();
            for change in changes {
                mirror.apply(change);
            }
            mirror
        }

        /// As the store writes it: each folded patch, then the others.
        fn write(&mut self, changes: &[Change]) {
            let Folded { patches, others } = fold(changes);
            for patch in &patches {
                self.apply(&owned(patch));
            }
            for change in others {
                self.apply(change);
            }
        }
    }

    /// Few, so that they meet, and such as sort otherwise than people would.
    const IDS: [&str; 5] = ["a", "B", "a ", "é", "Z😀"];

    fn user(id: &str) -> UserId {
        UserId::parse(id.into()).unwrap()
    }

    fn at() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH
    }

    fn owned(folded: &FoldedPatch<'_>) -> Change {
        let patch = MemberPatch {
            user_id: folded.user_id.clone(),
            nickname: folded.nickname.cloned(),
            face_url: folded.face_url.cloned(),
            role_level: folded.role_level,
            ex: folded.ex.cloned(),
        };
        Change::new(folded.group_id.clone(), at(), Event::SetMember(patch))
    }

    fn text() -> impl Strategy<Value = Option<Text>> {
        let text = prop_oneof!["", "[a-z]{1,3}", "👩‍👩‍👧", "\\PC{0,4}"];
        proptest::option::of(text.prop_map(Text::parse))
    }

    fn id() -> impl Strategy<Value = String> {
        proptest::sample::select(&IDS[..]).prop_map_into()
    }

    fn event() -> impl Strategy<Value = Event> {
        let role_level = proptest::option::of(prop_oneof![Just(20), Just(60), Just(100)]);
        let patch = (id(), text(), text(), role_level, text()).prop_map(
            |(user_id, nickname, face_url, role_level, ex)| {
                Event::SetMember(MemberPatch {
                    user_id: UserId::parse(user_id).unwrap(),
                    nickname,
                    face_url,
                    role_level,
                    ex,
                })
            },
        );
        let kick = id().prop_map(|id| {
            Event::Kick(Users {
                user_ids: vec![user(&id)],
                is_incomplete: false,
            })
        });
        prop_oneof![20 => patch, 1 => kick, 1 => Just(Event::Dismiss)]
    }

    fn change() -> impl Strategy<Value = Change> {
        (id(), event())
            .prop_map(|(group, event)| Change::new(GroupId::parse(group).unwrap(), at(), event))
    }

    proptest! {
        #[test]
        fn writing_folded_changes_is_writing_them_one_by_one(
            changes in proptest::collection::vec(change(), 0..40),
            cut in 0_usize..40,
        ) {
            let expected = Mirror::of(&changes);
            let mut folded = Mirror::default();
            folded.write(&changes);
            prop_assert_eq!(&folded, &expected);
            // One for each member, in bytewise order.
            let Folded { patches, others } = fold(&changes);
            let keys = |patch: &FoldedPatch<'_>| {
                let (group, user) = (patch.group_id.as_str(), patch.user_id.as_str());
                (group.as_bytes().to_vec(), user.as_bytes().to_vec())
            };
            prop_assert!(patches.is_sorted_by(|one, next| keys(one) < keys(next)));
            // A group is written in one way or in the other.
            for other in others {
                prop_assert!(patches.iter().all(|patch| *patch.group_id != other.group_id));
            }
            // However they are cut into batches.
            let (first, second) = changes.split_at(cut.min(changes.len()));
            let mut batches = Mirror::default();
            batches.write(first);
            batches.write(second);
            prop_assert_eq!(&batches, &expected);
        }
    }
}
