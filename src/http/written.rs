//! Answers as JSON, written as they are.
//!
//! poem-openapi's own `Json` first makes a tree of values of every answer, which takes longer than
//! all the rest of a page. The `Object` derives describe the same fields to the OpenAPI document; a
//! test of each type holds the two together.

use poem::http::header::CONTENT_TYPE;
use poem::http::{HeaderValue, StatusCode};
use poem::{Body, IntoResponse, Response};
use poem_openapi::ApiResponse;
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::Type;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;

/// A JSON answer.
#[derive(Debug)]
pub(super) struct Written<T>(pub(super) T);

impl<T: Type> Payload for Written<T> {
    const CONTENT_TYPE: &'static str = Json::<T>::CONTENT_TYPE;

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Serialize + Send> IntoResponse for Written<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(json) => self::json(json),
            // A time outside the years 0 to 9999, which neither we nor now() ever wrote.
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}

/// JSON text as an answer.
pub(super) fn json(text: impl Into<Body>) -> Response {
    let mut response = Response::from(text.into());
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

impl<T: Type + Serialize + Send> ApiResponse for Written<T> {
    fn meta() -> MetaResponses {
        let content = MetaMediaType {
            content_type: Self::CONTENT_TYPE,
            schema: Self::schema_ref(),
        };
        let response = MetaResponse {
            description: "",
            status: Some(200),
            status_range: None,
            content: vec![content],
            headers: vec![],
        };
        MetaResponses {
            responses: vec![response],
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// RFC 3339 in UTC, to the microsecond that Postgres keeps, without zeros at the end.
pub(super) fn rfc3339<S: Serializer>(
    time: &OffsetDateTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let utc = time.to_offset(time::UtcOffset::UTC);
    let (date, clock) = (utc.date(), utc.time());
    // The format has four digits for the year, and Postgres knows others.
    let Ok(year @ 0..=9999) = u32::try_from(date.year()) else {
        return Err(serde::ser::Error::custom("the year has no four digits"));
    };
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    put(&mut text[0..4], year);
    put(&mut text[5..7], u32::from(u8::from(date.month())));
    put(&mut text[8..10], u32::from(date.day()));
    put(&mut text[11..13], u32::from(clock.hour()));
    put(&mut text[14..16], u32::from(clock.minute()));
    put(&mut text[17..19], u32::from(clock.second()));
    put(&mut text[20..26], clock.microsecond());
    let end = match text[..26].iter().rposition(|digit| *digit != b'0') {
        // Of a whole second not even the point is left.
        Some(last) if last > 19 => last + 1,
        _ => 19,
    };
    text[end] = b'Z';
    // ASCII only.
    let text = std::str::from_utf8(&text[..=end]).map_err(serde::ser::Error::custom)?;
    serializer.serialize_str(text)
}

/// The same, or null.
pub(super) fn optional_rfc3339<S: Serializer>(
    time: &Option<OffsetDateTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => rfc3339(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// The last digits of a number.
fn put(digits: &mut [u8], mut number: u32) {
    for digit in digits.iter_mut().rev() {
        // Less than 10.
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// The JSON is what the OpenAPI document says of the type.
#[cfg(test)]
pub(super) fn assert_written_as_documented<T>()
where
    T: poem_openapi::types::Example + poem_openapi::types::ToJSON + Serialize,
{
    let example = T::example();
    let written = serde_json::to_string(&example).unwrap();
    // As texts, so that the order of the fields counts too.
    let documented = example.to_json().map(|value| value.to_string());
    assert_eq!(Some(written), documented);
}

#[cfg(test)]
mod tests {
    use poem_openapi::types::ToJSON;

    use super::*;

    #[derive(Serialize)]
    struct At(#[serde(serialize_with = "rfc3339")] OffsetDateTime);

    #[test]
    fn times_are_written_as_the_document_types_write_them() {
        let whole = OffsetDateTime::from_unix_timestamp(1_795_421_730).unwrap();
        let zero = OffsetDateTime::from_unix_timestamp(-62_167_219_200).unwrap();
        let last = OffsetDateTime::from_unix_timestamp(253_402_300_799).unwrap();
        for micros in [0, 1, 10, 123_456, 100_000, 500_000, 999_999, 120, 7_000] {
            for second in [whole, zero, last] {
                let time = second + time::Duration::microseconds(micros);
                let written = serde_json::to_value(At(time)).unwrap();
                assert_eq!(Some(written), time.to_json(), "{time}");
            }
        }
    }
}
