//! The paths in the form of a simple service with poem-openapi and sqlx: a pool, one statement for each request.

use poem::http::StatusCode;
use poem::{Route, Server, listener::TcpListener};
use poem_openapi::{Object, OpenApi, OpenApiService, param::{Path, Query}, payload::Json};
use sqlx::{AssertSqlSafe, FromRow, PgPool, postgres::PgPoolOptions};
use time::OffsetDateTime;

#[derive(Object)]
#[oai(rename_all = "camelCase")]
struct SetGroupMemberInfo {
    #[oai(rename = "groupID")]
    group_id: String,
    #[oai(rename = "userID")]
    user_id: String,
    nick_name: Option<String>,
    #[oai(rename = "faceURL")]
    face_url: Option<String>,
    role_level: Option<i32>,
    ex: Option<String>,
}

#[derive(Object)]
#[oai(rename_all = "camelCase")]
struct Reply {
    action_code: i32,
    err_code: i32,
    err_msg: String,
    err_dlt: String,
    next_code: i32,
}

#[derive(Object, FromRow)]
#[oai(rename_all = "camelCase")]
struct Member {
    #[oai(rename = "groupID")]
    group_id: String,
    #[oai(rename = "userID")]
    user_id: String,
    #[oai(rename = "nickName")]
    nickname: Option<String>,
    #[oai(rename = "displayName")]
    display_nickname: Option<String>,
    #[oai(rename = "faceURL")]
    face_url: Option<String>,
    #[oai(rename = "displayFaceURL")]
    display_face_url: Option<String>,
    role_level: Option<i32>,
    ex: Option<String>,
    joined_at: Option<OffsetDateTime>,
    join_source: Option<i32>,
    #[oai(rename = "inviterUserID")]
    inviter_user_id: Option<String>,
    #[oai(rename = "operatorUserID")]
    operator_user_id: Option<String>,
    mute_end_at: Option<OffsetDateTime>,
    left_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

#[derive(Object)]
#[oai(rename_all = "camelCase")]
struct Page {
    members: Vec<Member>,
    next_cursor: Option<String>,
}

struct Api {
    pool: PgPool,
    patch: String,
    member: String,
    page: String,
}

fn failed(error: sqlx::Error) -> poem::Error {
    poem::Error::new(error, StatusCode::INTERNAL_SERVER_ERROR)
}

#[OpenApi]
impl Api {
    #[oai(path = "/callbackAfterSetGroupMemberInfoCommand", method = "post")]
    async fn set_group_member_info(&self, body: Json<SetGroupMemberInfo>) -> poem::Result<Json<Reply>> {
        sqlx::query(AssertSqlSafe(self.patch.as_str()))
            .bind(&body.group_id)
            .bind(&body.user_id)
            .bind(&body.nick_name)
            .bind(&body.face_url)
            .bind(body.role_level)
            .bind(&body.ex)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(Json(Reply {
            action_code: 0,
            err_code: 0,
            err_msg: String::new(),
            err_dlt: String::new(),
            next_code: 1,
        }))
    }

    #[oai(path = "/groups/:group_id/members/:user_id", method = "get")]
    async fn member(&self, group_id: Path<String>, user_id: Path<String>) -> poem::Result<Json<Member>> {
        let row = sqlx::query_as(AssertSqlSafe(self.member.as_str()))
            .bind(&group_id.0)
            .bind(&user_id.0)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed)?;
        row.map(Json).ok_or_else(|| StatusCode::NOT_FOUND.into())
    }

    #[oai(path = "/groups/:group_id/members", method = "get")]
    async fn members(
        &self,
        group_id: Path<String>,
        #[oai(default = "hundred")] limit: Query<u32>,
        cursor: Query<Option<String>>,
    ) -> poem::Result<Json<Page>> {
        let limit = limit.0 as usize;
        let mut members: Vec<Member> = sqlx::query_as(AssertSqlSafe(self.page.as_str()))
            .bind(&group_id.0)
            .bind(cursor.0.unwrap_or_default())
            .bind(limit as i64 + 1)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        let more = members.len() > limit;
        members.truncate(limit);
        let next_cursor = members.last().filter(|_| more).map(|m| m.user_id.clone());
        Ok(Json(Page { members, next_cursor }))
    }
}

fn hundred() -> u32 {
    100
}

#[tokio::main]
async fn main() {
    let env = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let pool = PgPoolOptions::new()
        .max_connections(16)
        .connect(&env("DATABASE_URL"))
        .await
        .expect("the database");
    let api = Api {
        pool,
        patch: env("SQL_PATCH"),
        member: env("SQL_MEMBER"),
        page: env("SQL_PAGE"),
    };
    let route = Route::new().nest("/", OpenApiService::new(api, "bench", "0"));
    Server::new(TcpListener::bind(format!("127.0.0.1:{}", env("PORT"))))
        .run(route)
        .await
        .expect("serving");
}
