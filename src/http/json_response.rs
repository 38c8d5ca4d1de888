//! JSON answers.
//!
//! poem-openapi's own `Json` first makes a tree of values of each answer, which takes longer than the
//! rest of a page. `Object` derives describe the same fields to the OpenAPI document. A test of each
//! type compares the two.

use poem::http::header::CONTENT_TYPE;
use poem::http::{HeaderValue, StatusCode};
use poem::{Body, IntoResponse, Response};
use poem_openapi::ApiResponse;
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::{ToJSON, Type};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;

/// A JSON answer.
#[derive(Debug)]
pub(super) struct JsonResponse<T>(pub(super) T);

impl<T: Type> Payload for JsonResponse<T> {
    const CONTENT_TYPE: &'static str = Json::<T>::CONTENT_TYPE;

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Serialize + Send> IntoResponse for JsonResponse<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(json) => self::json(json),
            // A time outside the years 0 to 9999. Neither the service nor now() writes one.
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}

/// An answer of JSON text.
pub(super) fn json(text: impl Into<Body>) -> Response {
    let mut response = Response::from(text.into());
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

impl<T: ToJSON + Serialize + Send> ApiResponse for JsonResponse<T> {
    fn meta() -> MetaResponses {
        Json::<T>::meta()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// Writes a time in RFC 3339 and UTC, with the microseconds of Postgres and without trailing zeros.
///
/// Own code, because it is faster than the formatter of the `time` crate.
pub(super) fn rfc3339<S: Serializer>(
    time: &OffsetDateTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let utc = time.to_offset(time::UtcOffset::UTC);
    let (date, clock) = (utc.date(), utc.time());
    // RFC 3339 has four digits for the year. Postgres has other years too.
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
        // A whole second has no fraction and no point.
        Some(last) if last > 19 => last + 1,
        _ => 19,
    };
    text[end] = b'Z';
    // ASCII only.
    let text = std::str::from_utf8(&text[..=end]).map_err(serde::ser::Error::custom)?;
    serializer.serialize_str(text)
}

/// Writes a time as [`rfc3339`] does, or null.
pub(super) fn optional_rfc3339<S: Serializer>(
    time: &Option<OffsetDateTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => rfc3339(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// Writes the last digits of a number.
fn put(digits: &mut [u8], mut number: u32) {
    for digit in digits.iter_mut().rev() {
        // Less than 10.
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Declares a JSON object of answers once: its fields, their documentation, and its example.
///
/// A field is `name "jsonName" nullable: Type as "writer" = example;`. `nullable` is for a field that can
/// be null, and a writer is for times. `from Row` makes the object from a row with the same fields.
macro_rules! json_object {
    (
        $(#[$meta:meta])*
        struct $name:ident $(from $row:ident)? {
            $(
                $(#[$doc:meta])+
                $field:ident $json:tt $($nullable:ident)?: $type:ty $(as $writer:tt)? = $example:expr;
            )+
        }
    ) => {
        #[derive(Clone, Debug, poem_openapi::Object, serde::Serialize)]
        $(#[$meta])*
        pub(crate) struct $name {
            $(
                $(#[$doc])+
                #[oai(rename = $json $(, $nullable)?)]
                #[serde(rename = $json $(, serialize_with = $writer)?)]
                pub(crate) $field: $type,
            )+
        }

        impl poem_openapi::types::Example for $name {
            fn example() -> Self {
                Self { $($field: $example),+ }
            }
        }

        json_object!(@from $($row)? $name [$($field)+]);
    };
    (@from $name:ident [$($field:ident)+]) => {};
    (@from $row:ident $name:ident [$($field:ident)+]) => {
        impl From<$row> for $name {
            fn from(row: $row) -> Self {
                // A new column does not compile until it is a field.
                let $row { $($field),+ } = row;
                Self { $($field),+ }
            }
        }
    };
}
pub(super) use json_object;

/// A time for examples: 2026-11-23T08:15:30.123456Z.
pub(super) fn example_time() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + time::Duration::microseconds(1_795_421_730_123_456)
}

/// Panics unless the JSON is as the OpenAPI document describes the type.
#[cfg(test)]
pub(super) fn assert_written_as_documented<T>()
where
    T: poem_openapi::types::Example + poem_openapi::types::ToJSON + Serialize,
{
    let example = T::example();
    let written = serde_json::to_string(&example).unwrap();
    // Texts, so that the order of fields counts too.
    let documented = example.to_json().map(|value| value.to_string());
    assert_eq!(Some(written), documented);
}

#[cfg(test)]
mod tests {
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
