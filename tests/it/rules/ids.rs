//! Ids, texts, fences and kinds of notifications: what they accept.

use openim_group_mirror::domain::*;

#[test]
fn an_id_is_1_to_1024_bytes_without_nul() {
    for good in ["a", "/", " ", "%2F", "ß", "👩‍👩‍👧", &"x".repeat(1024)] {
        assert_eq!(GroupId::parse(good.into()).unwrap().as_str(), good);
    }
    assert_eq!(UserId::parse(String::new()), Err(IdError::Empty));
    assert_eq!(UserId::parse("x".repeat(1025)), Err(IdError::TooLong));
    // The limit counts bytes, not characters.
    assert_eq!(UserId::parse("ß".repeat(513)), Err(IdError::TooLong));
    assert_eq!(UserId::parse("a\0b".into()), Err(IdError::Nul));
}

#[test]
fn nul_in_a_text_becomes_the_replacement_character() {
    assert_eq!(Text::parse("a\0b\0".into()).as_str(), "a\u{FFFD}b\u{FFFD}");
    assert_eq!(Text::parse(String::new()).as_str(), "");
}

#[test]
fn a_transaction_had_ended_if_it_is_before_the_first_or_not_running() {
    let fence: Fence = "10:20:10,14".parse().unwrap();
    let had_ended = |xid| fence.has_ended(xid);
    assert!([1, 9, 11, 13, 15, 19].into_iter().all(had_ended));
    assert!(![10, 14, 20, 21, i64::MAX].into_iter().any(had_ended));
    let quiet: Fence = "7:7:".parse().unwrap();
    assert!(quiet.has_ended(6) && !quiet.has_ended(7));
    assert_eq!(quiet.as_str(), "7:7:");
}

#[test]
fn other_texts_are_refused() {
    for text in ["", "1", "1:2", "1:2:x", "a:2:", "1:2:3:4"] {
        assert!(text.parse::<Fence>().is_err(), "{text}");
    }
}

#[test]
fn the_content_types_are_1501_to_1520() {
    let codes: Vec<i32> = HintKind::ALL.iter().map(|kind| kind.code()).collect();
    assert_eq!(codes, (1501..=1520).collect::<Vec<_>>());
    for kind in HintKind::ALL {
        assert_eq!(HintKind::of_code(kind.code().into()), Some(*kind));
        assert_eq!(kind.label(), kind.code().to_string());
    }
    for ordinary in [0, 101, 1500, 1521, -1509] {
        assert_eq!(HintKind::of_code(ordinary), None);
    }
}
