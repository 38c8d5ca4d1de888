"""What a backend in Python writes against the client of openapi-python-client."""

from datetime import datetime

from checks import GROUP, PASSWORD, TOKEN, URL, check, equal, pages
from generated import AuthenticatedClient
from generated.api.callbacks import callback_after_set_group_member_info as set_info
from generated.api.operations import drift
from generated.api.reads import (
    get_group,
    get_member,
    list_groups_of_user,
    list_members,
    query_memberships,
)
from generated.models.list_members_state import ListMembersState
from generated.models.membership_pair import MembershipPair
from generated.models.membership_query import MembershipQuery
from generated.models.set_group_member_info import SetGroupMemberInfo
from generated.models.set_group_member_info_callback_command import (
    SetGroupMemberInfoCallbackCommand as Command,
)

reads = AuthenticatedClient(URL, TOKEN)


def openim(password):
    import base64

    key = base64.b64encode(f"openim:{password}".encode()).decode()
    return AuthenticatedClient(URL, key, prefix="Basic")


change = SetGroupMemberInfo(
    callback_command=Command.CALLBACKAFTERSETGROUPMEMBERINFOCOMMAND,
    group_id=GROUP,
    user_id="x+y",
    nick_name="Ann",
    role_level=None,
)


@check("callback")
def _():
    equal(set_info.sync(client=openim(PASSWORD), body=change).action_code, 0)


@check("refused")
def _():
    reply = set_info.sync_detailed(client=openim("wrong"), body=change)
    equal((reply.status_code, reply.parsed.err_code), (401, 5111))


def member(user, **options):
    return get_member.sync_detailed(GROUP, user, client=reads, **options)


@check("ids")
def _():
    for user in ["x+y", "50%"]:
        equal(member(user).parsed.user_id, user)
    ann = member("x+y").parsed
    equal((ann.nick_name, ann.display_face_url, ann.join_source), ("Ann", None, None))
    equal(isinstance(ann.updated_at, datetime), True)


@check("unchanged")
def _():
    answer = member("x+y", if_none_match=member("x+y").headers["ETag"])
    equal(answer.status_code, 304)


@check("problem")
def _():
    answer = get_group.sync_detailed("none", client=reads)
    equal((answer.status_code, answer.parsed.code), (404, "group_unknown"))


@check("pages")
def _():
    def page(cursor):
        options = {} if cursor is None else {"cursor": cursor}
        return list_members.sync(GROUP, client=reads, limit=1, **options)

    equal(pages(page), ["..", "50%", "x+y"])


@check("filter")
def _():
    found = list_members.sync(GROUP, client=reads, user_id=["x+y", "50%"])
    equal(len(found.members), 2)
    found = list_members.sync(GROUP, client=reads, state=ListMembersState.ALL)
    equal(len(found.members), 4)


@check("query")
def _():
    pairs = [MembershipPair(GROUP, user) for user in ["..", "stranger"]]
    answers = query_memberships.sync(client=reads, body=MembershipQuery(pairs)).memberships
    equal([answer.is_member for answer in answers], [True, False])
    equal((answers[0].member.user_id, answers[1].member), ("..", None))


@check("groups")
def _():
    page = list_groups_of_user.sync("50%", client=reads)
    equal((page.user_id, [group.group_id for group in page.groups]), ("50%", [GROUP]))


@check("drift")
def _():
    equal(drift.sync(client=reads).last_run, None)


try:
    print("dots", "sent" if list_groups_of_user.sync("..", client=reads).user_id == ".." else "other")
except KeyError:
    print("dots refused")
