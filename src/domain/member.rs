//! A member of a group: what is known of one, and what a callback can change.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Text, UserId};

/// Role level of an ordinary member; 60 is an admin and 100 the owner. OpenIM's before-hooks can
/// put any number in its place, so a role level is an `i32` and nothing is refused.
pub const ORDINARY: i32 = 20;
/// Role level of the owner. OpenIM gives it by creating or transferring a group only.
pub const OWNER: i32 = 100;

/// What set-member-info says of one member. `None` leaves a field as it is; an empty text is a
/// value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPatch {
    /// The member.
    pub user_id: UserId,
    /// Name in this group; empty means that OpenIM shows the name of the user's profile.
    pub nickname: Option<Text>,
    /// Avatar in this group; empty as for the nickname.
    pub face_url: Option<Text>,
    /// See [`ORDINARY`].
    pub role_level: Option<i32>,
    /// Extra data, opaque to OpenIM and to us.
    pub ex: Option<Text>,
}

/// What is known of a member, current or gone; `None` is what is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "those of MemberPatch")]
pub struct Member {
    pub nickname: Option<Text>,
    pub face_url: Option<Text>,
    pub role_level: Option<i32>,
    pub ex: Option<Text>,
    /// What OpenIM shows: the nickname or, where that is empty, the name of the user's profile.
    pub display_nickname: Option<Text>,
    /// The same of the avatar.
    pub display_face_url: Option<Text>,
    /// When the member came, if that was heard of.
    pub joined_at: Option<OffsetDateTime>,
    /// 1 by an administrator, 2 by invitation, 3 by search, 4 by QR code.
    pub join_source: Option<i32>,
    /// Who invited the member; empty: nobody did, or OpenIM has not noted it.
    pub inviter: Option<Text>,
    /// Who let the member in.
    pub operator: Option<Text>,
    /// Until when the member is muted.
    pub mute_end_at: Option<OffsetDateTime>,
    /// When the member left: the row is a tombstone.
    pub left_at: Option<OffsetDateTime>,
}

impl Member {
    /// One who has just come: OpenIM makes a new record with an ordinary role and empty texts,
    /// whatever there was before.
    pub fn fresh(joined_at: Option<OffsetDateTime>) -> Self {
        Self {
            role_level: Some(ORDINARY),
            joined_at,
            ..Self::default()
        }
        .without_unknown_texts()
    }

    /// The same, with the texts that nobody has told empty, as they are in a new record.
    pub(super) fn without_unknown_texts(mut self) -> Self {
        for text in [&mut self.nickname, &mut self.face_url, &mut self.ex] {
            text.get_or_insert_default();
        }
        self
    }

    /// Takes what a patch says of the texts. What OpenIM shows is what was told, unless that is empty:
    /// then it is known only where it was empty before too.
    pub(super) fn set_texts(&mut self, patch: &MemberPatch) {
        for (field, display, told) in [
            (
                &mut self.nickname,
                &mut self.display_nickname,
                &patch.nickname,
            ),
            (
                &mut self.face_url,
                &mut self.display_face_url,
                &patch.face_url,
            ),
        ] {
            let Some(text) = told else {
                continue;
            };
            if !text.is_empty() {
                *display = Some(text.clone());
            } else if field.as_ref() != Some(text) {
                *display = None;
            }
            *field = Some(text.clone());
        }
        if patch.ex.is_some() {
            self.ex.clone_from(&patch.ex);
        }
    }

    /// Whether the member has left.
    pub fn is_gone(&self) -> bool {
        self.left_at.is_some()
    }
}
