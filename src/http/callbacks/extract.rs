//! A message on its way in: its head is looked at as it comes, and nothing of it is kept.

use std::marker::PhantomData;

use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use time::OffsetDateTime;

use super::super::body;
use super::super::server;
use super::{Looked, Notice};
use crate::domain::{Hint, HintKind};

/// What came; documented as `T`. Whatever it is, it is no error: a user may wait for the answer.
#[derive(Debug)]
pub(in crate::http) struct Message<T> {
    pub(in crate::http) told: Notified,
    documented: PhantomData<T>,
}

/// What a message tells.
#[derive(Debug)]
pub(in crate::http) enum Notified {
    /// Nothing of a group.
    Nothing,
    /// That something has happened to one.
    Hint(Hint),
    /// The same, but not to which.
    Unreadable(HintKind),
}

impl<'a, T: Type + Send> ApiExtractor<'a> for Message<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: None,
            content: vec![MetaMediaType {
                content_type: "application/json",
                schema: T::schema_ref(),
            }],
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let mut looked = Looked::default();
        body::pass_through(request, body, |bytes| {
            looked.look(bytes);
        })
        .await;
        let told = match looked.end() {
            Notice::Ordinary => Notified::Nothing,
            Notice::Notification {
                kind,
                group_id: None,
                ..
            } => Notified::Unreadable(kind),
            Notice::Notification {
                kind,
                group_id: Some(group_id),
                operation_id,
            } => Notified::Hint(Hint {
                group_id,
                kind,
                operation_id: operation_id
                    .or_else(|| server::operation_id(request).map(str::to_owned)),
                received_at: OffsetDateTime::now_utc(),
            }),
        };
        Ok(Self {
            told,
            documented: PhantomData,
        })
    }
}
