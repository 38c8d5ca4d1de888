//! Folded patches have the result of the patches in their order.

use openim_group_mirror::domain::*;
use proptest::prelude::*;
use time::OffsetDateTime;

/// Rows of groups after changes were applied one by one. All members are there.
#[derive(Debug, Default, PartialEq)]
struct Mirror(std::collections::BTreeMap<GroupId, GroupRows>);

impl Mirror {
    fn apply(&mut self, change: &Change) {
        // It does not matter which of two reasons is the last.
        let reason = MarkReason::CallbackLost;
        let rows = self.0.entry(change.group_id.clone()).or_insert_with(|| {
            let member = |id: &&str| (user(id), Member::fresh(None));
            GroupRows {
                group: Some(Default::default()),
                members: IDS.iter().map(member).collect(),
                ..GroupRows::default()
            }
        });
        apply(rows, change);
        rows.mark = rows.mark.and(Some(reason));
    }

    fn of<'a>(changes: impl IntoIterator<Item = &'a Change>) -> Self {
        let mut mirror = Self::default();
        for change in changes {
            mirror.apply(change);
        }
        mirror
    }

    /// Applies changes in the order of the store: folded patches, then the others.
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

/// A few ids, so that they meet. Their bytewise order is not that of a dictionary.
const IDS: [&str; 5] = ["a", "B", "a ", "é", "Z😀"];

fn user(id: &str) -> UserId {
    UserId::parse(id.into()).unwrap()
}

fn at() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH
}

fn owned(folded: &FoldedPatch<'_>) -> Change {
    let patch = folded.patch.clone().into_owned();
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
                nickname,
                face_url,
                role_level,
                ex,
                ..MemberPatch::new(user(&user_id))
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
        // There is one patch for each member, in bytewise order.
        let Folded { patches, others } = fold(&changes);
        let keys = |patch: &FoldedPatch<'_>| {
            let (group, user) = patch.key();
            let (group, user) = (group.as_str(), user.as_str());
            (group.as_bytes().to_vec(), user.as_bytes().to_vec())
        };
        prop_assert!(patches.is_sorted_by(|one, next| keys(one) < keys(next)));
        // A group is in one of the two lists.
        for other in others {
            prop_assert!(patches.iter().all(|patch| *patch.group_id != other.group_id));
        }
        // The result does not depend on the batches.
        let (first, second) = changes.split_at(cut.min(changes.len()));
        let mut batches = Mirror::default();
        batches.write(first);
        batches.write(second);
        prop_assert_eq!(&batches, &expected);
    }
}
