"""The same doors as a team would write them with FastAPI and asyncpg."""

import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

PATCH, MEMBER, PAGE = (os.environ[f"SQL_{name}"] for name in ("PATCH", "MEMBER", "PAGE"))


@asynccontextmanager
async def lifespan(app: FastAPI):
    # asyncpg prepares each statement once a connection by itself.
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=16, max_size=16) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


class SetGroupMemberInfo(BaseModel):
    callbackCommand: str
    groupID: str
    userID: str
    nickName: str | None = None
    faceURL: str | None = None
    roleLevel: int | None = None
    ex: str | None = None


@app.post("/callbackAfterSetGroupMemberInfoCommand")
async def set_group_member_info(body: SetGroupMemberInfo, request: Request):
    await request.app.state.pool.execute(
        PATCH, body.groupID, body.userID, body.nickName, body.faceURL, body.roleLevel, body.ex
    )
    return {"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 1}


def member(row):
    return {
        "groupID": row["group_id"],
        "userID": row["user_id"],
        "nickName": row["nickname"],
        "displayName": row["display_nickname"],
        "faceURL": row["face_url"],
        "displayFaceURL": row["display_face_url"],
        "roleLevel": row["role_level"],
        "ex": row["ex"],
        "joinedAt": row["joined_at"],
        "joinSource": row["join_source"],
        "inviterUserID": row["inviter_user_id"],
        "operatorUserID": row["operator_user_id"],
        "muteEndAt": row["mute_end_at"],
        "leftAt": row["left_at"],
        "createdAt": row["created_at"],
        "updatedAt": row["updated_at"],
    }


@app.get("/groups/{group_id}/members/{user_id}")
async def get_member(group_id: str, user_id: str, request: Request):
    row = await request.app.state.pool.fetchrow(MEMBER, group_id, user_id)
    if row is None:
        raise HTTPException(404)
    return member(row)


@app.get("/groups/{group_id}/members")
async def get_members(group_id: str, request: Request, limit: int = 100, cursor: str = ""):
    rows = await request.app.state.pool.fetch(PAGE, group_id, cursor, limit + 1)
    next_cursor = rows[limit - 1]["user_id"] if len(rows) > limit else None
    return {"members": [member(row) for row in rows[:limit]], "nextCursor": next_cursor}
