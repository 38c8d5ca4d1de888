// The same two doors as a team would write them with fastify and pg.
import Fastify from "fastify";
import pg from "pg";

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 16 });
const app = Fastify();

app.post("/callbackAfterSetGroupMemberInfoCommand", async (request) => {
  const { groupID, userID, nickName, faceURL, roleLevel, ex } = request.body;
  await pool.query({
    name: "patch",
    text: process.env.SQL_PATCH,
    values: [groupID, userID, nickName, faceURL, roleLevel, ex],
  });
  return { actionCode: 0, errCode: 0, errMsg: "", errDlt: "", nextCode: 1 };
});

const member = (row) => ({
  groupID: row.group_id,
  userID: row.user_id,
  nickName: row.nickname,
  displayName: row.display_nickname,
  faceURL: row.face_url,
  displayFaceURL: row.display_face_url,
  roleLevel: row.role_level,
  ex: row.ex,
  joinedAt: row.joined_at,
  joinSource: row.join_source,
  inviterUserID: row.inviter_user_id,
  operatorUserID: row.operator_user_id,
  muteEndAt: row.mute_end_at,
  leftAt: row.left_at,
  createdAt: row.created_at,
  updatedAt: row.updated_at,
});

const nullable = (type) => ({ type, nullable: true });
const memberSchema = {
  type: "object",
  properties: {
    groupID: { type: "string" },
    userID: { type: "string" },
    nickName: nullable("string"),
    displayName: nullable("string"),
    faceURL: nullable("string"),
    displayFaceURL: nullable("string"),
    roleLevel: nullable("integer"),
    ex: nullable("string"),
    joinedAt: nullable("string"),
    joinSource: nullable("integer"),
    inviterUserID: nullable("string"),
    operatorUserID: nullable("string"),
    muteEndAt: nullable("string"),
    leftAt: nullable("string"),
    createdAt: { type: "string", format: "date-time" },
    updatedAt: { type: "string", format: "date-time" },
  },
};
const pageSchema = {
  type: "object",
  properties: {
    members: { type: "array", items: memberSchema },
    nextCursor: nullable("string"),
  },
};

app.get(
  "/groups/:groupID/members/:userID",
  { schema: { response: { 200: memberSchema } } },
  async (request, reply) => {
    const { groupID, userID } = request.params;
    const { rows } = await pool.query({
      name: "member",
      text: process.env.SQL_MEMBER,
      values: [groupID, userID],
    });
    return rows.length ? member(rows[0]) : reply.code(404).send({});
  },
);

app.get(
  "/groups/:groupID/members",
  { schema: { response: { 200: pageSchema } } },
  async (request) => {
    const limit = Number(request.query.limit ?? 100);
    const { rows } = await pool.query({
      name: "page",
      text: process.env.SQL_PAGE,
      values: [request.params.groupID, request.query.cursor ?? "", limit + 1],
    });
    const nextCursor = rows.length > limit ? rows[limit - 1].user_id : null;
    return { members: rows.slice(0, limit).map(member), nextCursor };
  },
);

await app.listen({ host: "127.0.0.1", port: Number(process.env.PORT) });
