"""What a backend in Python writes against the client of openapi-generator."""

from checks import GROUP, PASSWORD, TOKEN, URL, check, equal, pages
import openapi_client as api
from pydantic import ValidationError

reads = api.ApiClient(api.Configuration(host=URL, access_token=TOKEN))
members = api.ReadsApi(reads)


def openim(password):
    keys = api.Configuration(host=URL, username="openim", password=password)
    return api.CallbacksApi(api.ApiClient(keys))


change = api.SetGroupMemberInfo(
    callback_command="callbackAfterSetGroupMemberInfoCommand",
    group_id=GROUP,
    user_id="x+y",
    nick_name="Ann",
    role_level=None,
)


@check("callback")
def _():
    equal(openim(PASSWORD).callback_after_set_group_member_info(change).action_code, 0)


@check("refused")
def _():
    try:
        openim("wrong").callback_after_set_group_member_info(change)
    except api.ApiException as refused:
        equal((refused.status, refused.data.err_code), (401, 5111))
    else:
        raise AssertionError("taken")


@check("ids")
def _():
    for user in ["x+y", "50%"]:
        equal(members.get_member(GROUP, user).user_id, user)
    ann = members.get_member(GROUP, "x+y")
    equal((ann.nick_name, ann.display_face_url, ann.join_source), ("Ann", None, None))


@check("unchanged")
def _():
    # A plain dict, with the names as they are sent.
    headers = members.get_member_with_http_info(GROUP, "x+y").headers
    etag = {name.lower(): value for name, value in headers.items()}["etag"]
    try:
        members.get_member(GROUP, "x+y", if_none_match=etag)
    except api.ApiException as unchanged:
        equal(unchanged.status, 304)
    else:
        raise AssertionError("not 304")


@check("problem")
def _():
    try:
        members.get_group("none")
    except api.ApiException as problem:
        equal((problem.status, problem.data.code), (404, "group_unknown"))
    else:
        raise AssertionError("there is such a group")


@check("pages")
def _():
    found = pages(lambda cursor: members.list_members(GROUP, limit=1, cursor=cursor))
    equal(found, ["..", "50%", "x+y"])


@check("filter")
def _():
    equal(len(members.list_members(GROUP, user_id=["x+y", "50%"]).members), 2)
    equal(len(members.list_members(GROUP, state="all").members), 4)


@check("query")
def _():
    pairs = [api.MembershipPair(group_id=GROUP, user_id=user) for user in ["..", "stranger"]]
    answers = members.query_memberships(api.MembershipQuery(pairs=pairs)).memberships
    equal([answer.is_member for answer in answers], [True, False])
    equal((answers[0].member.user_id, answers[1].member), ("..", None))


@check("groups")
def _():
    page = members.list_groups_of_user("50%")
    equal((page.user_id, [group.group_id for group in page.groups]), ("50%", [GROUP]))


@check("drift")
def _():
    equal(api.OperationsApi(reads).drift().last_run, None)


try:
    print("dots", "sent" if members.list_groups_of_user("..").user_id == ".." else "other")
except ValidationError:
    print("dots refused")
