//! Patches of one member that come together are one patch.

use super::{GroupId, MemberPatch, Text, UserId};

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

impl<'a> From<&'a MemberPatch> for FoldedPatch<'a> {
    fn from(patch: &'a MemberPatch) -> Self {
        let MemberPatch {
            group_id,
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
}

impl<'a> FoldedPatch<'a> {
    fn key(&self) -> (&'a GroupId, &'a UserId) {
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

/// One patch a member, in bytewise order of group and user. Writing these is the same as writing
/// `patches` one after the other, in the order they have.
///
/// The order of the keys is for whoever writes: two who lock the same rows in the same order
/// never wait for each other in a circle.
pub fn fold<'a>(patches: impl IntoIterator<Item = &'a MemberPatch>) -> Vec<FoldedPatch<'a>> {
    let mut folded: Vec<FoldedPatch> = patches.into_iter().map(FoldedPatch::from).collect();
    // Stable: patches of one member keep their order.
    folded.sort_by_key(FoldedPatch::key);
    folded.dedup_by(|later, earlier| {
        let same = later.key() == earlier.key();
        if same {
            earlier.then(later.clone());
        }
        same
    });
    folded
}
