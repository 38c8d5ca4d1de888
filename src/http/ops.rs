//! For whoever runs the service: is it alive, can it work?

use poem_openapi::payload::Json;
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};

use super::Tag;
use super::problem::ReadFailure;
use crate::store::Store;

pub(super) struct Ops {
    pub(super) store: Store,
}

/// The state of the service.
#[derive(Object)]
#[oai(example)]
struct Status {
    /// Always "ok"; anything else is another HTTP status.
    status: String,
}

impl Example for Status {
    fn example() -> Self {
        Self {
            status: "ok".into(),
        }
    }
}

#[OpenApi(tag = "Tag::Operations")]
impl Ops {
    /// Is the process alive?
    ///
    /// Asks nobody else: restart the process when this does not answer.
    #[oai(path = "/livez", method = "get", operation_id = "livez")]
    async fn livez(&self) -> Json<Status> {
        Json(Status::example())
    }

    /// Can it work?
    ///
    /// Asks the database: send no traffic here while this answers 503.
    #[oai(path = "/readyz", method = "get", operation_id = "readyz")]
    async fn readyz(&self) -> Result<Json<Status>, ReadFailure> {
        self.store.ping().await?;
        Ok(Json(Status::example()))
    }
}
