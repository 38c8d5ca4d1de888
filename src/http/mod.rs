//! The door that is pushed to and asked: routes, the edge around them, and the server. The only
//! place that names poem.

mod answers;
mod body;
mod callbacks;
mod document;
mod edge;
mod error;
mod groups;
mod json;
mod members;
mod memberships;
mod ops;
mod page;
mod pages;
mod params;
mod payload;
mod problem;
mod reply;

use std::sync::Arc;
use std::time::Duration;

use poem::listener::TcpAcceptor;
use poem::{Endpoint, EndpointExt, IntoEndpoint, Response, Server};
use poem_openapi::{OpenApiService, Tags};

use body::MaxBodyBytes;
use callbacks::Callbacks;
use document::Document;
use groups::Groups;
use members::Members;
use memberships::Memberships;
use ops::Ops;
use pages::Pages;

use crate::ingest::Ingest;
use crate::store::Store;

/// How to treat requests.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// nextCode of the success reply to callbackAfterSetGroupMemberInfoCommand.
    pub callback_next_code: i32,
}

/// Parts of the API.
#[derive(Tags)]
enum Tag {
    /// What OpenIM calls.
    Callbacks,
    /// What a backend asks.
    Reads,
    /// What whoever runs the service asks.
    Operations,
}

type Api = (Callbacks, Groups, Members, Memberships, Ops);

/// The OpenAPI document as JSON.
///
/// # Errors
/// When the document cannot be written as JSON, which would be a mistake of ours.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    Ok(Document::of::<Api>()?.json)
}

/// Everything that is served, without a socket.
fn endpoint(
    store: Store,
    ingest: Ingest,
    settings: Settings,
) -> Result<impl Endpoint<Output = Response> + 'static, serde_json::Error> {
    let document = Document::of::<Api>()?;
    let routes = Arc::new(document.routes.clone());
    let api = (
        Callbacks {
            ingest,
            next_code: settings.callback_next_code,
        },
        Groups {
            store: store.clone(),
        },
        Members {
            store: store.clone(),
        },
        Memberships {
            store: store.clone(),
        },
        Ops { store },
    );
    // Title and version are of the document, which is made already.
    Ok(OpenApiService::new((api, Pages::from(document)), "", "")
        .into_endpoint()
        .data(MaxBodyBytes(settings.max_body_bytes))
        .around(move |endpoint, request| edge::around(endpoint, request, Arc::clone(&routes))))
}

/// Serves until `shutdown`, then finishes open requests, for `timeout` at most.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(
    listener: tokio::net::TcpListener,
    store: Store,
    ingest: Ingest,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
    timeout: Duration,
) -> std::io::Result<()> {
    let endpoint = endpoint(store, ingest, settings).map_err(std::io::Error::other)?;
    // No idle timeout: OpenIM's client keeps its connections, and loses the callback that it
    // sends on one that we are just closing.
    Server::new_with_acceptor(TcpAcceptor::from_tokio(listener)?)
        .run_with_graceful_shutdown(endpoint, shutdown, Some(timeout))
        .await
}
