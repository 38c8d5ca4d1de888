// What a backend in TypeScript writes against the generated types. It has to compile under --strict
// and to get from a running service what the types say.
import createClient from "openapi-fetch";
import type { components, paths } from "./openapi.js";

declare const process: { argv: string[] };
const [baseUrl, password, token] = process.argv.slice(2);
if (!baseUrl || !password || !token) throw new Error("usage: client URL PASSWORD TOKEN");

function equal<T>(found: T, expected: T): void {
  if (JSON.stringify(found) !== JSON.stringify(expected)) {
    throw new Error(`expected ${JSON.stringify(expected)}, found ${JSON.stringify(found)}`);
  }
}

const reads = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });
const openim = createClient<paths>({
  baseUrl,
  headers: { Authorization: `Basic ${btoa(`openim:${password}`)}` },
});

const command = "callbackAfterSetGroupMemberInfoCommand" as const;
const change: components["schemas"]["SetGroupMemberInfo"] = {
  callbackCommand: command,
  groupID: "client/1",
  userID: "ü",
  nickName: "Ann",
  roleLevel: null,
};
const reply = await openim.POST(`/${command}`, { body: change });
equal(reply.data?.actionCode, 0);

const path = { groupID: "client/1", userID: "ü" };
const member = await reads.GET("/groups/{groupID}/members/{userID}", { params: { path } });
const nickName: string | null | undefined = member.data?.nickName;
equal(nickName, "Ann");
equal(member.data?.roleLevel, null);
const displayName: string | null | undefined = member.data?.displayName;
equal(displayName, "Ann");
const displayFaceURL: string | null | undefined = member.data?.displayFaceURL;
equal(displayFaceURL, null);
const joinSource: number | null | undefined = member.data?.joinSource;
equal(joinSource, null);
const told: (string | null | undefined)[] = [
  member.data?.inviterUserID,
  member.data?.operatorUserID,
  member.data?.muteEndAt,
];
equal(told, [null, null, null]);

const page = await reads.GET("/groups/{groupID}/members", {
  params: { path: { groupID: "client/1" }, query: { limit: 10, userID: ["ü", "x"] } },
});
equal(page.data?.members.length, 1);
equal(page.data?.nextCursor, null);

const query = await reads.POST("/memberships/query", {
  body: { pairs: [path, { groupID: "client/1", userID: "x" }] },
});
equal(query.data?.memberships.map((answer) => answer.isMember), [true, false]);

const nobody = await reads.GET("/groups/{groupID}", { params: { path: { groupID: "none" } } });
equal(nobody.error?.code, "group_unknown");

const drift = await reads.GET("/drift");
equal(drift.data?.compares, false);
const lastRun: components["schemas"]["Comparison"] | null | undefined = drift.data?.lastRun;
equal(lastRun, null);
equal(drift.data?.currentRun, null);
equal(drift.data?.checksWanted.map(({ reason, groups }) => [reason, groups]), [["group_unknown", 1]]);

const stranger = await openim.GET("/groups/{groupID}", { params: { path: { groupID: "client/1" } } });
equal(stranger.error?.code, "credentials_wrong");
