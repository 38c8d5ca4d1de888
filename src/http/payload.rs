//! OpenIM's bodies exactly as sent; each turns into what it changes.
//!
//! Bodies are read by hand rather than by derived parsers: an event that is refused is lost, so
//! the error has to say which field and what was expected, and may neither quote the value nor
//! name a Rust type. The `Object` derives describe the same fields to the OpenAPI document; a test
//! holds the two together.

use poem::{Request, RequestBody};
use poem_openapi::payload::{ParsePayload, Payload};
use poem_openapi::registry::{MetaMediaType, MetaRequest, MetaSchemaRef, Registry};
use poem_openapi::types::{Example, Type};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions, Object};

use super::error::{Code, Error};
use super::json::{self, Field};
use crate::domain::{GroupId, MemberPatch, Text, UserId};

/// Largest body that is read, in bytes; handed to the extractors as request data.
#[derive(Clone, Copy, Debug)]
pub(super) struct MaxBodyBytes(pub(super) usize);

/// A body that we know how to read.
pub(super) trait FromBody: Sized {
    fn from_body(body: &str) -> Result<Self, Error>;
}

/// A JSON body, read whole within the limit and parsed by [`FromBody`].
#[derive(Debug)]
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: Type> Payload for JsonBody<T> {
    const CONTENT_TYPE: &'static str = "application/json";

    fn check_content_type(content_type: &str) -> bool {
        poem_openapi::payload::Json::<T>::check_content_type(content_type)
    }

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: FromBody> ParsePayload for JsonBody<T> {
    const IS_REQUIRED: bool = true;

    async fn from_request(request: &Request, body: &mut RequestBody) -> poem::Result<Self> {
        let MaxBodyBytes(limit) = *request.extensions().get().unwrap_or(&MaxBodyBytes(0));
        let too_large = || {
            Error::new(
                Code::BodyTooLarge,
                format!("expected at most {limit} bytes (MAX_BODY_BYTES)"),
            )
        };
        let announced = request
            .header("content-length")
            .and_then(|length| length.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limit as u64) {
            return Err(too_large().into());
        }
        let body = match body.take()?.into_bytes_limit(limit).await {
            Ok(body) => body,
            Err(poem::error::ReadBodyError::PayloadTooLarge) => return Err(too_large().into()),
            Err(_) => {
                return Err(Error::new(Code::BodyIncomplete, "the connection ended first").into());
            }
        };
        let text = std::str::from_utf8(&body)
            .map_err(|_| Error::new(Code::BodyMalformed, "expected UTF-8"))?;
        Ok(Self(T::from_body(text)?))
    }
}

/// What poem-openapi does for its own payloads.
impl<'a, T: Type + FromBody> ApiExtractor<'a> for JsonBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        <Self as Payload>::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: None,
            content: vec![MetaMediaType {
                content_type: Self::CONTENT_TYPE,
                schema: Self::schema_ref(),
            }],
            required: Self::IS_REQUIRED,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        if !request.content_type().is_some_and(Self::check_content_type) {
            return Err(
                Error::new(Code::NotJson, "Content-Type: expected application/json").into(),
            );
        }
        <Self as ParsePayload>::from_request(request, body).await
    }
}

/// callbackAfterSetGroupMemberInfoCommand: fields of one member that were set. Missing and null
/// both mean "left as it is"; an empty text is a value.
#[derive(Clone, Debug, Object)]
#[oai(rename = "SetGroupMemberInfo", rename_all = "camelCase", example)]
pub(super) struct SetGroupMemberInfo {
    /// Always callbackAfterSetGroupMemberInfoCommand.
    callback_command: String,
    /// The group: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    group_id: String,
    /// The member: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "userID", validator(min_length = 1, max_length = 1024))]
    user_id: String,
    /// Name in this group; empty: OpenIM shows the name of the user's profile.
    #[oai(nullable)]
    nick_name: Option<String>,
    /// Avatar in this group; empty: OpenIM shows the avatar of the user's profile.
    #[oai(rename = "faceURL", nullable)]
    face_url: Option<String>,
    /// 100 owner, 60 admin, 20 ordinary member. Any number is stored: OpenIM's before-hooks can
    /// put one there.
    #[oai(nullable)]
    role_level: Option<i32>,
    /// Extra data.
    #[oai(nullable)]
    ex: Option<String>,
}

impl SetGroupMemberInfo {
    pub(super) const COMMAND: &'static str = "callbackAfterSetGroupMemberInfoCommand";
    const FIELDS: [&'static str; 7] = [
        "callbackCommand",
        "groupID",
        "userID",
        "nickName",
        "faceURL",
        "roleLevel",
        "ex",
    ];
}

impl FromBody for SetGroupMemberInfo {
    fn from_body(body: &str) -> Result<Self, Error> {
        let [
            command,
            group_id,
            user_id,
            nick_name,
            face_url,
            role_level,
            ex,
        ] = json::object(body, Self::FIELDS)?;
        Ok(Self {
            callback_command: command.required()?.text()?,
            group_id: group_id.required()?.text()?,
            user_id: user_id.required()?.text()?,
            nick_name: nick_name.optional(|value| value.text())?,
            face_url: face_url.optional(|value| value.text())?,
            role_level: role_level.optional(|value| value.int32())?,
            ex: ex.optional(|value| value.text())?,
        })
    }
}

impl TryFrom<SetGroupMemberInfo> for MemberPatch {
    type Error = Error;

    fn try_from(body: SetGroupMemberInfo) -> Result<Self, Error> {
        let SetGroupMemberInfo {
            callback_command,
            group_id,
            user_id,
            nick_name,
            face_url,
            role_level,
            ex,
        } = body;
        expect_command(&callback_command, SetGroupMemberInfo::COMMAND)?;
        Ok(MemberPatch {
            group_id: GroupId::parse(group_id).map_err(|e| Error::id("groupID", e))?,
            user_id: UserId::parse(user_id).map_err(|e| Error::id("userID", e))?,
            nickname: nick_name.map(Text::parse),
            face_url: face_url.map(Text::parse),
            role_level,
            ex: ex.map(Text::parse),
        })
    }
}

/// A body sent to the wrong path is one that we would misread.
fn expect_command(found: &str, expected: &'static str) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::new(
        Code::CommandMismatch,
        format!("callbackCommand: expected {expected}, as in the path"),
    ))
}

impl Example for SetGroupMemberInfo {
    /// The sample of OpenIM's documentation.
    fn example() -> Self {
        Self {
            callback_command: Self::COMMAND.into(),
            group_id: "12345".into(),
            user_id: "user789".into(),
            nick_name: Some("user".into()),
            face_url: Some("http://example.com/path/to/face/image.png".into()),
            role_level: Some(20),
            ex: Some("Extra data".into()),
        }
    }
}

/// One question of a membership query.
#[derive(Clone, Debug, Object)]
pub(super) struct Pair {
    /// The group: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "groupID", validator(min_length = 1, max_length = 1024))]
    pub(super) group_id: String,
    /// The user: 1 to 1,024 bytes, any characters but U+0000.
    #[oai(rename = "userID", validator(min_length = 1, max_length = 1024))]
    pub(super) user_id: String,
}

/// Which of these users are members of these groups?
#[derive(Clone, Debug, Object)]
#[oai(example)]
pub(super) struct MembershipQuery {
    /// Up to 1,000 pairs; a pair may be there twice.
    #[oai(validator(max_items = 1000))]
    pub(super) pairs: Vec<Pair>,
}

/// Most pairs in one query.
pub(super) const MAX_PAIRS: usize = 1000;

impl FromBody for MembershipQuery {
    fn from_body(body: &str) -> Result<Self, Error> {
        let [pairs] = json::object(body, ["pairs"])?;
        let pairs = pairs.required()?.array(MAX_PAIRS)?;
        let read = |(index, pair): (usize, &str)| -> Result<Pair, Error> {
            let of_pair = |error: Error| Error {
                detail: format!("pairs[{index}]: {}", error.detail).into(),
                ..error
            };
            let [group_id, user_id] = json::object(pair, ["groupID", "userID"]).map_err(of_pair)?;
            let text = |field: Field<'_>| field.required().and_then(|value| value.text());
            Ok(Pair {
                group_id: text(group_id).map_err(of_pair)?,
                user_id: text(user_id).map_err(of_pair)?,
            })
        };
        Ok(Self {
            pairs: pairs
                .into_iter()
                .enumerate()
                .map(read)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl Example for MembershipQuery {
    fn example() -> Self {
        let pair = |group: &str, user: &str| Pair {
            group_id: group.into(),
            user_id: user.into(),
        };
        Self {
            pairs: vec![pair("12345", "user789"), pair("12345", "stranger")],
        }
    }
}
