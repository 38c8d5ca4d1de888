//! A JSON body on its way in: its type checked, read whole within the limit, then parsed by hand.
//!
//! By hand rather than by derived parsers: an event that is refused is lost, so the error has to
//! say which field and what was expected, and may neither quote the value nor name a Rust type. The
//! `Object` derives describe the same fields to the OpenAPI document; a test holds the two together.

use poem::error::ReadBodyError;
use poem::{Request, RequestBody};
use poem_openapi::payload::{Json, ParsePayload, Payload};
use poem_openapi::registry::{MetaMediaType, MetaRequest, MetaSchemaRef, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};

use super::error::{Code, Error};

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
        Json::<T>::check_content_type(content_type)
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
            Err(ReadBodyError::PayloadTooLarge) => return Err(too_large().into()),
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
