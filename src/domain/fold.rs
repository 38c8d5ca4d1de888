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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Values = (Option<Text>, Option<Text>, Option<i32>, Option<Text>);

    /// What is stored after writing one patch after the other.
    fn one_by_one(patches: &[MemberPatch]) -> BTreeMap<(GroupId, UserId), Values> {
        let mut stored = BTreeMap::<_, Values>::new();
        for patch in patches {
            let key = (patch.group_id.clone(), patch.user_id.clone());
            let (nickname, face_url, role_level, ex) = stored.entry(key).or_default();
            if patch.nickname.is_some() {
                nickname.clone_from(&patch.nickname);
            }
            if patch.face_url.is_some() {
                face_url.clone_from(&patch.face_url);
            }
            if patch.role_level.is_some() {
                *role_level = patch.role_level;
            }
            if patch.ex.is_some() {
                ex.clone_from(&patch.ex);
            }
        }
        stored
    }

    fn text() -> impl Strategy<Value = Option<Text>> {
        let text = prop_oneof!["", "[a-z]{1,3}", "👩‍👩‍👧", "\\PC{0,4}"];
        proptest::option::of(text.prop_map(Text::parse))
    }

    /// Few keys, so that they meet, and such as sort otherwise than people would.
    fn id() -> impl Strategy<Value = String> {
        prop_oneof![Just("a"), Just("B"), Just("a "), Just("é"), Just("Z😀")].prop_map_into()
    }

    fn patch() -> impl Strategy<Value = MemberPatch> {
        let role_level = proptest::option::of(prop_oneof![Just(20), Just(60), any::<i32>()]);
        (id(), id(), text(), text(), role_level, text()).prop_map(
            |(group_id, user_id, nickname, face_url, role_level, ex)| MemberPatch {
                group_id: GroupId::parse(group_id).unwrap(),
                user_id: UserId::parse(user_id).unwrap(),
                nickname,
                face_url,
                role_level,
                ex,
            },
        )
    }

    proptest! {
        #[test]
        fn writing_folded_patches_is_writing_them_one_by_one(
            patches in proptest::collection::vec(patch(), 0..40),
            cut in 0_usize..40,
        ) {
            let folded = fold(&patches);
            let each: Vec<MemberPatch> = folded.iter().map(owned).collect();
            prop_assert_eq!(one_by_one(&each), one_by_one(&patches));
            // One for each member, in bytewise order.
            let keys = |patch: &MemberPatch| {
                let (group, user) = (patch.group_id.as_str(), patch.user_id.as_str());
                (group.as_bytes().to_vec(), user.as_bytes().to_vec())
            };
            prop_assert!(each.is_sorted_by(|one, next| keys(one) < keys(next)));
            // However they are cut into batches.
            let (first, second) = patches.split_at(cut.min(patches.len()));
            let batches: Vec<MemberPatch> =
                fold(first).iter().chain(&fold(second)).map(owned).collect();
            prop_assert_eq!(one_by_one(&batches), one_by_one(&patches));
        }
    }

    fn owned(folded: &FoldedPatch<'_>) -> MemberPatch {
        MemberPatch {
            group_id: folded.group_id.clone(),
            user_id: folded.user_id.clone(),
            nickname: folded.nickname.cloned(),
            face_url: folded.face_url.cloned(),
            role_level: folded.role_level,
            ex: folded.ex.cloned(),
        }
    }
}
