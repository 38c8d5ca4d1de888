//! The documentation that the service serves of itself. Not part of what it documents.

use bytes::Bytes;
use poem_openapi::payload::Binary;
use poem_openapi::{ApiResponse, OpenApi};

use super::document::Document;

/// Shared texts, not copies: the page has 1.6 MB.
pub(super) struct Pages {
    json: Bytes,
    yaml: Bytes,
    page: Bytes,
}

impl From<Document> for Pages {
    fn from(document: Document) -> Self {
        Self {
            json: document.json.into(),
            yaml: document.yaml.into(),
            page: document.page.into(),
        }
    }
}

#[derive(ApiResponse)]
enum Page {
    #[oai(status = 200, content_type = "text/html; charset=utf-8")]
    Html(Binary<Bytes>),
    #[oai(status = 200, content_type = "application/json")]
    Json(Binary<Bytes>),
    #[oai(status = 200, content_type = "application/yaml")]
    Yaml(Binary<Bytes>),
    #[oai(status = 307)]
    Elsewhere(#[oai(header = "Location")] String),
}

#[OpenApi]
impl Pages {
    #[oai(path = "/", method = "get", hidden)]
    async fn root(&self) -> Page {
        Page::Elsewhere("/docs".into())
    }

    #[oai(path = "/docs", method = "get", hidden)]
    async fn docs(&self) -> Page {
        Page::Html(Binary(self.page.clone()))
    }

    #[oai(path = "/openapi.json", method = "get", hidden)]
    async fn json(&self) -> Page {
        Page::Json(Binary(self.json.clone()))
    }

    #[oai(path = "/openapi.yaml", method = "get", hidden)]
    async fn yaml(&self) -> Page {
        Page::Yaml(Binary(self.yaml.clone()))
    }
}
