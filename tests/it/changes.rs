//! Changes by the rules alone: folding, first members, operators.

use std::collections::BTreeMap;

use openim_group_mirror::domain::{
    Change, Creation, Event, Folded, FoldedPatch, GroupId, GroupProfile, GroupRows, MarkReason,
    Member, MemberPatch, Operators, Text, UserId, Users, apply, first_members, fold,
    may_be_operator,
};
use proptest::prelude::*;
use time::OffsetDateTime;

fn user(id: &str) -> UserId {
    UserId::parse(id.into()).unwrap()
}

fn decode(list: &[(&str, i32)], owner: &str) -> Vec<(String, i32)> {
    let list = list.iter().map(|(id, role)| (user(id), *role));
    let members = first_members(list, Some(&user(owner)));
    let plain = |(user, role): (UserId, i32)| (user.as_str().to_owned(), role);
    members.into_iter().map(plain).collect()
}

#[test]
fn first_mentions_before_the_owners_second_are_the_members_of_a_creation() {
    let list = [
        ("o1", 100),
        ("a1", 60),
        ("m1", 20),
        ("a1", 20),
        ("o1", 20),
        ("imAdmin", 20),
    ];
    let true_members = [("o1", 100), ("a1", 60), ("m1", 20)];
    let owned = true_members.map(|(id, role)| (id.to_owned(), role));
    assert_eq!(decode(&list, "o1"), owned);
    // The operator is a member.
    assert_eq!(decode(&list[..5], "o1"), owned);
    // No member is named twice.
    assert_eq!(decode(&list[..3], "o1"), owned);
    assert_eq!(
        decode(&[("o1", 100), ("o1", 20), ("imAdmin", 20)], "o1"),
        [("o1".to_owned(), 100)]
    );
}

fn operators() -> Operators {
    Operators::new([user("imAdmin"), user("backend")])
}

fn creation(list: &[(&str, i32)]) -> Creation {
    let list: Vec<_> = list.iter().map(|(id, role)| (user(id), *role)).collect();
    let owner = user("o1");
    Creation {
        profile: GroupProfile::default(),
        may_be_operator: may_be_operator(&list, Some(&owner)),
        members: first_members(list, Some(&owner)),
        owner: Some(owner),
        status: None,
        group_type: None,
        created_at: None,
        is_incomplete: false,
    }
}

fn members(list: &[(&str, i32)]) -> (Vec<String>, bool) {
    let Event::Create(created) = operators().sort_out(Event::Create(creation(list))) else {
        panic!("another event");
    };
    assert_eq!(created.may_be_operator, None);
    let ids = created.members.iter();
    let ids = ids.map(|(user, _)| user.as_str().to_owned()).collect();
    (ids, created.is_incomplete)
}

#[test]
fn an_operator_at_the_end_of_a_list_that_names_the_owner_once_is_no_member() {
    let of = |ids: &[&str], marked| (ids.iter().map(|id| (*id).to_owned()).collect(), marked);
    for (list, expected) in [
        (
            [("o1", 100), ("m1", 20), ("imAdmin", 20)].as_slice(),
            of(&["o1", "m1"], true),
        ),
        (&[("o1", 100), ("backend", 20)], of(&["o1"], true)),
        // Not an ordinary member, not the last, not an operator.
        (
            &[("o1", 100), ("imAdmin", 60)],
            of(&["o1", "imAdmin"], false),
        ),
        (
            &[("o1", 100), ("imAdmin", 20), ("m1", 20)],
            of(&["o1", "imAdmin", "m1"], false),
        ),
        (&[("o1", 100), ("m1", 20)], of(&["o1", "m1"], false)),
        // Named twice: the list tells, and a member who is an operator stays.
        (
            &[("o1", 100), ("imAdmin", 20), ("o1", 20)],
            of(&["o1", "imAdmin"], false),
        ),
        (
            &[("o1", 100), ("m1", 20), ("o1", 20), ("imAdmin", 20)],
            of(&["o1", "m1"], false),
        ),
    ] {
        assert_eq!(members(list), expected, "{list:?}");
    }
}

#[test]
fn who_joins_is_not_the_operator_that_is_told_as_inviter() {
    let marked = Event::Mark(MarkReason::MembersMissing);
    assert_eq!(operators().sort_out(Event::Join(user("imAdmin"))), marked);
    let join = Event::Join(user("u5"));
    assert_eq!(operators().sort_out(join.clone()), join);
    assert_eq!(Operators::default().sort_out(join.clone()), join);
}

/// Rows of groups after changes were applied one by one. All members are there.
#[derive(Debug, Default, PartialEq)]
struct Mirror(BTreeMap<GroupId, GroupRows>);

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
