//! Changes are applied to rows, and marks tell of contradictions.

use openim_group_mirror::domain::*;
use time::OffsetDateTime;

fn user(id: &str) -> UserId {
    UserId::parse(id.into()).unwrap()
}

fn change(event: Event, is_reconciled_soon: bool) -> Change {
    let group = GroupId::parse("g".into()).unwrap();
    Change {
        is_reconciled_soon,
        ..Change::new(group, OffsetDateTime::UNIX_EPOCH, event)
    }
}

fn group(status: i32) -> GroupRows {
    let group = Group {
        status: Some(status),
        ..Group::default()
    };
    GroupRows {
        group: Some(group),
        ..GroupRows::default()
    }
}

#[test]
fn a_group_that_is_reconciled_soon_is_changed_and_not_marked() {
    for (mut rows, event) in [
        (group(0), Event::Quit(user("u"))),
        (group(DISMISSED), Event::Join(user("u"))),
        (GroupRows::default(), Event::Dismiss),
    ] {
        let mut marked = rows.clone();
        apply(&mut marked, &change(event.clone(), false));
        assert!(marked.mark.is_some());
        apply(&mut rows, &change(event, true));
        assert_eq!(rows.mark, None);
        marked.mark = None;
        assert_eq!(rows, marked);
    }
}

#[test]
fn explicit_marks_stay_and_so_do_those_of_other_changes() {
    let mut rows = group(0);
    let lost = MarkReason::CallbackLost;
    apply(&mut rows, &change(Event::Mark(lost), true));
    assert_eq!(rows.mark, Some(lost));
    apply(&mut rows, &change(Event::Quit(user("u")), true));
    assert_eq!(rows.mark, Some(lost));
    apply(&mut rows, &change(Event::Quit(user("v")), false));
    assert_eq!(rows.mark, Some(MarkReason::MemberUnknown));
}

#[test]
fn mark_if_dismissed_marks_only_known_dismissed_groups() {
    let came_back = Event::MarkIfDismissed(MarkReason::Notified);
    for (mut rows, expected) in [
        (group(DISMISSED), Some(MarkReason::Notified)),
        (group(0), None),
        (GroupRows::default(), None),
    ] {
        let before = rows.clone();
        apply(&mut rows, &change(came_back.clone(), false));
        assert_eq!(rows.mark, expected);
        rows.mark = None;
        assert_eq!(rows, before);
    }
}

/// A mark by a notification can be taken back.
#[test]
fn a_notification_replaces_no_other_reason() {
    let notified = Event::Mark(MarkReason::Notified);
    for is_first in [true, false] {
        let mut rows = group(0);
        let quit = change(Event::Quit(user("u")), false);
        let hint = change(notified.clone(), false);
        let changes = match is_first {
            true => [hint, quit],
            false => [quit, hint],
        };
        for change in &changes {
            apply(&mut rows, change);
        }
        assert_eq!(rows.mark, Some(MarkReason::MemberUnknown));
    }
}
