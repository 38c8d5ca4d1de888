//! Commands of OpenIM: their pattern, and the labels by which callbacks are counted that do not
//! concern the mirror.

/// Label of every other command. A caller must not choose a label.
const OTHER: &str = "other";

/// As in OpenIM's pkg/callbackstruct/constant.go, 3.8; those with another ending are of 3.6.
const KNOWN: [&str; 43] = [
    "callbackAfterAddFriendAgreeCommand",
    "callbackAfterAddFriendCommand",
    "callbackAfterCreateGroupChatConversationsCommand",
    "callbackAfterCreateSingleChatConversationsCommand",
    "callbackAfterDeleteFriendCommand",
    "callbackAfterGroupMsgReadCommand",
    "callbackAfterImportFriendsCommand",
    "callbackAfterMsgSaveDBCommand",
    "callbackAfterRemoveBlackCommand",
    "callbackAfterSendGroupMsgCommand",
    "callbackAfterSendSingleMsgCommand",
    "callbackAfterSetFriendRemark",
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
    "callbackBeforeSetFriendRemark",
    "callbackBeforeSetFriendRemarkCommand",
    "callbackBeforeSetGroupMemberInfoCommand",
    "callbackBeforeUpdateUserInfoCommand",
    "callbackBeforeUpdateUserInfoExCommand",
    "callbackBeforeUserRegisterCommand",
    "callbackSingleMsgRead",
];

/// Pattern of commands that are not [`KNOWN`], as a regular expression of JSON Schema.
pub(in crate::http) const PATTERN: &str = "^callback[A-Za-z0-9]+Command$";

/// Returns true if the text is a command of OpenIM, known or unknown.
pub(in crate::http) fn is_command(text: &str) -> bool {
    let middle = text
        .strip_prefix("callback")
        .and_then(|rest| rest.strip_suffix("Command"));
    let is_one = |middle: &str| {
        !middle.is_empty() && middle.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    middle.is_some_and(is_one) || KNOWN.contains(&text)
}

/// Label of a command: the command itself if it is known.
pub(in crate::http) fn label(command: &str) -> &'static str {
    let known = KNOWN.iter().find(|known| **known == command);
    known.copied().unwrap_or(OTHER)
}

/// Every label.
pub(in crate::http) fn labels() -> impl Iterator<Item = &'static str> {
    KNOWN.into_iter().chain([OTHER])
}

/// A command for examples.
pub(in crate::http) fn example() -> String {
    "callbackAfterSendSingleMsgCommand".into()
}
