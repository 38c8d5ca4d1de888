//! Extractor of messages. It reads the head of a body as it arrives and keeps nothing of it.

use std::marker::PhantomData;

use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use time::OffsetDateTime;

use super::super::body;
use super::{Looked, Notice};
use crate::domain::{Hint, HintKind};

/// A message, documented as `T`. No body is an error, because a user may wait for the answer.
#[derive(Debug)]
pub(in crate::http) struct Message<T> {
    pub(in crate::http) told: Notified,
    documented: PhantomData<T>,
}

/// Content of a message for the mirror.
#[derive(Debug)]
pub(in crate::http) enum Notified {
    /// An ordinary message.
    Nothing,
    /// A notification that names its group.
    Hint(Hint),
    /// A notification without a usable group id.
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
        Some(body::documented_as::<T>())
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
                operation_id: operation_id.or_else(|| body::operation_id(request)),
                received_at: OffsetDateTime::now_utc(),
            }),
        };
        Ok(Self {
            told,
            documented: PhantomData,
        })
    }
}
