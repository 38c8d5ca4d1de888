// What a backend in TypeScript writes against the types of openapi-typescript. It has to compile under
// --strict, and to get from a running service what the types say.
import createClient from "openapi-fetch";
import { basic, check, equal, given } from "./checks.js";
import type { components, paths } from "./openapi.js";

const { baseUrl, password, token } = given;
const reads = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });
const openim = (password: string) =>
  createClient<paths>({ baseUrl, headers: { Authorization: basic(password) } });

const groupID = "a/b c";
const command = "callbackAfterSetGroupMemberInfoCommand" as const;
const change: components["schemas"]["SetGroupMemberInfo"] = {
  callbackCommand: command,
  groupID,
  userID: "x+y",
  nickName: "Ann",
  roleLevel: null,
};

await check("callback", async () => {
  const reply = await openim(password).POST(`/${command}`, { body: change });
  equal(reply.data?.actionCode, 0);
});

await check("refused", async () => {
  const reply = await openim("wrong").POST(`/${command}`, { body: change });
  equal(reply.response.status, 401);
  equal(reply.error?.errCode, 5111);
});

const member = async (userID: string, ifNoneMatch?: string) =>
  reads.GET("/groups/{groupID}/members/{userID}", {
    params: { path: { groupID, userID }, header: { "If-None-Match": ifNoneMatch } },
  });

await check("ids", async () => {
  for (const userID of ["x+y", "50%"]) equal((await member(userID)).data?.userID, userID);
  const { data } = await member("x+y");
  if (data === undefined) throw new Error("no member");
  // Always there, null where nothing is known.
  const told: (string | null)[] = [data.nickName, data.displayFaceURL, data.inviterUserID];
  equal(told, ["Ann", null, null]);
  const joinSource: number | null = data.joinSource;
  equal(joinSource, null);
});

await check("unchanged", async () => {
  const { response } = await member("x+y");
  const again = await member("x+y", response.headers.get("ETag") ?? "");
  equal(again.response.status, 304);
});

await check("problem", async () => {
  const path = { groupID: "none" };
  const { response, error } = await reads.GET("/groups/{groupID}", { params: { path } });
  equal(response.status, 404);
  equal(error?.code, "group_unknown");
  const stranger = await openim(password).GET("/groups/{groupID}", { params: { path } });
  equal(stranger.error?.code, "credentials_wrong");
});

await check("pages", async () => {
  const users: string[] = [];
  let cursor: string | null | undefined;
  do {
    const query = { limit: 1, ...(cursor ? { cursor } : {}) };
    const page = await reads.GET("/groups/{groupID}/members", {
      params: { path: { groupID }, query },
    });
    equal(page.data?.groupID, groupID);
    users.push(...(page.data?.members ?? []).map((member) => member.userID));
    cursor = page.data?.nextCursor;
  } while (cursor);
  equal(users, ["..", "50%", "x+y"]);
});

await check("filter", async () => {
  const ask = async (query: { userID?: string[]; state?: "current" | "left" | "all" }) =>
    (await reads.GET("/groups/{groupID}/members", { params: { path: { groupID }, query } })).data
      ?.members.length;
  equal(await ask({ userID: ["x+y", "50%"] }), 2);
  equal(await ask({ state: "all" }), 4);
});

await check("query", async () => {
  const pairs = ["..", "stranger"].map((userID) => ({ groupID, userID }));
  const { data } = await reads.POST("/memberships/query", { body: { pairs } });
  equal(data?.memberships.map(({ isMember }) => isMember), [true, false]);
  const found: components["schemas"]["Member"] | null | undefined = data?.memberships[1]?.member;
  equal(found, null);
});

const groupsOf = async (userID: string) =>
  (await reads.GET("/users/{userID}/groups", { params: { path: { userID } } })).data;

await check("groups", async () => {
  const page = await groupsOf("50%");
  equal(page?.userID, "50%");
  equal(page?.groups.map((group) => group.groupID), [groupID]);
});

await check("drift", async () => {
  const { data } = await reads.GET("/drift");
  const lastRun: components["schemas"]["Comparison"] | null | undefined = data?.lastRun;
  equal(lastRun, null);
});

console.log(`dots ${(await groupsOf(".."))?.userID === ".." ? "sent" : "other"}`);
