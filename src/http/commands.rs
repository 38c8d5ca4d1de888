//! Commands of OpenIM that say nothing of the mirror, by which their callbacks are counted.

/// What stands for a command that is none of these: a caller must not choose a label.
const OTHER: &str = "other";

/// As in OpenIM's pkg/callbackstruct/constant.go, 3.8.
const KNOWN: [&str; 39] = [
    "callbackAfterAddFriendAgreeCommand",
    "callbackAfterAddFriendCommand",
    "callbackAfterCreateGroupChatConversationsCommand",
    "callbackAfterCreateSingleChatConversationsCommand",
    "callbackAfterDeleteFriendCommand",
    "callbackAfterGroupMsgReadCommand",
    "callbackAfterImportFriendsCommand",
    "callbackAfterRemoveBlackCommand",
    "callbackAfterSendGroupMsgCommand",
    "callbackAfterSendSingleMsgCommand",
    "callbackAfterSetFriendRemarkCommand",
    "callbackAfterSingleMsgReadCommand",
    "callbackAfterUpdateUserInfoCommand",
    "callbackAfterUpdateUserInfoExCommand",
    "callbackAfterUserKickOffCommand",
    "callbackAfterUserOfflineCommand",
    "callbackAfterUserOnlineCommand",
    "callbackAfterUserRegisterCommand",
    "callbackBeforeAddBlackCommand",
    "callbackBeforeAddFriendAgreeCommand",
    "callbackBeforeAddFriendCommand",
    "callbackBeforeAfterMsgCommand",
    "callbackBeforeCreateGroupChatConversationsCommand",
    "callbackBeforeCreateGroupCommand",
    "callbackBeforeCreateSingleChatConversationsCommand",
    "callbackBeforeGroupOnlinePushCommand",
    "callbackBeforeImportFriendsCommand",
    "callbackBeforeInviteJoinGroupCommand",
    "callbackBeforeJoinGroupCommand",
    "callbackBeforeMsgModifyCommand",
    "callbackBeforeOfflinePushCommand",
    "callbackBeforeOnlinePushCommand",
    "callbackBeforeSendGroupMsgCommand",
    "callbackBeforeSendSingleMsgCommand",
    "callbackBeforeSetFriendRemarkCommand",
    "callbackBeforeSetGroupMemberInfoCommand",
    "callbackBeforeUpdateUserInfoCommand",
    "callbackBeforeUpdateUserInfoExCommand",
    "callbackBeforeUserRegisterCommand",
];

/// The command, if it is one that is known.
pub(super) fn label(command: &str) -> &'static str {
    let known = KNOWN.iter().find(|known| **known == command);
    known.copied().unwrap_or(OTHER)
}

/// Every label.
pub(super) fn labels() -> impl Iterator<Item = &'static str> {
    KNOWN.into_iter().chain([OTHER])
}

/// A command for examples.
pub(super) fn example() -> String {
    "callbackAfterSendSingleMsgCommand".into()
}
