//! Changes: the members of a creation, and operators.

use openim_group_mirror::domain::*;

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
