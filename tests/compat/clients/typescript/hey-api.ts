// The same with the client of @hey-api/openapi-ts.
import { basic, check, equal, given } from "./checks.js";
import * as api from "./hey-api/sdk.gen.js";
import { createClient } from "./hey-api/client/index.js";
import type { Comparison, Member, SetGroupMemberInfo } from "./hey-api/types.gen.js";

const { baseUrl, password, token } = given;
const reads = createClient({ baseUrl, auth: token });
const openim = (password: string) =>
  createClient({ baseUrl, headers: { Authorization: basic(password) } });

const groupID = "a/b c";
const body: SetGroupMemberInfo = {
  callbackCommand: "callbackAfterSetGroupMemberInfoCommand",
  groupID,
  userID: "x+y",
  nickName: "Ann",
  roleLevel: null,
};

await check("callback", async () => {
  const reply = await api.callbackAfterSetGroupMemberInfo({ client: openim(password), body });
  equal(reply.data?.actionCode, 0);
});

await check("refused", async () => {
  const reply = await api.callbackAfterSetGroupMemberInfo({ client: openim("wrong"), body });
  equal(reply.response?.status, 401);
  equal(reply.error?.errCode, 5111);
});

const member = async (userID: string, ifNoneMatch?: string) =>
  api.getMember({
    client: reads,
    path: { groupID, userID },
    headers: ifNoneMatch === undefined ? {} : { "If-None-Match": ifNoneMatch },
  });

await check("ids", async () => {
  for (const userID of ["x+y", "50%"]) equal((await member(userID)).data?.userID, userID);
  const { data } = await member("x+y");
  if (data === undefined) throw new Error("no member");
  const told: (string | null)[] = [data.nickName, data.displayFaceURL, data.inviterUserID];
  equal(told, ["Ann", null, null]);
});

await check("unchanged", async () => {
  const { response } = await member("x+y");
  const again = await member("x+y", response?.headers.get("ETag") ?? "");
  equal(again.response?.status, 304);
});

await check("problem", async () => {
  const { response, error } = await api.getGroup({ client: reads, path: { groupID: "none" } });
  equal(response?.status, 404);
  equal(error?.code, "group_unknown");
});

await check("pages", async () => {
  const users: string[] = [];
  let cursor: string | null | undefined;
  do {
    const query = { limit: 1, ...(cursor ? { cursor } : {}) };
    const page = await api.listMembers({ client: reads, path: { groupID }, query });
    equal(page.data?.groupID, groupID);
    users.push(...(page.data?.members ?? []).map((member) => member.userID));
    cursor = page.data?.nextCursor;
  } while (cursor);
  equal(users, ["..", "50%", "x+y"]);
});

await check("filter", async () => {
  const ask = async (query: { userID?: string[]; state?: "current" | "left" | "all" }) =>
    (await api.listMembers({ client: reads, path: { groupID }, query })).data?.members.length;
  equal(await ask({ userID: ["x+y", "50%"] }), 2);
  equal(await ask({ state: "all" }), 4);
});

await check("query", async () => {
  const pairs = ["..", "stranger"].map((userID) => ({ groupID, userID }));
  const { data } = await api.queryMemberships({ client: reads, body: { pairs } });
  equal(data?.memberships.map(({ isMember }) => isMember), [true, false]);
  const found: Member | null | undefined = data?.memberships[1]?.member;
  equal(found, null);
});

const groupsOf = async (userID: string) =>
  (await api.listGroupsOfUser({ client: reads, path: { userID } })).data;

await check("groups", async () => {
  const page = await groupsOf("50%");
  equal(page?.userID, "50%");
  equal(page?.groups.map((group) => group.groupID), [groupID]);
});

await check("drift", async () => {
  const { data } = await api.drift({ client: reads });
  const lastRun: Comparison | null | undefined = data?.lastRun;
  equal(lastRun, null);
});

console.log(`dots ${(await groupsOf(".."))?.userID === ".." ? "sent" : "other"}`);
