//! Routes, and the operation that takes a callback.
//!
//! OpenIM appends "/" and the command to its `url`. After a path the command is the last segment;
//! after a query string it is a part of that; and a proxy may cut it off. The body always has it.

use std::collections::BTreeMap;

use poem::Request;
use poem::http::Uri;
use poem::http::uri::PathAndQuery;

use crate::http::body::{self, FromBody};
use crate::http::callbacks::commands;
use crate::http::error::{Code, Error, Side};

/// The documented paths, by the router's pattern of each.
pub(crate) type Routes = BTreeMap<String, Route>;

/// A documented path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The path of the document, for example `/groups/{groupID}`.
    pub(crate) path: String,
    /// Its methods, as in `Allow`.
    pub(crate) methods: String,
    /// The command, for a path that OpenIM calls.
    pub(crate) command: Option<String>,
    /// True for a path that reads the mirror.
    pub(crate) is_read: bool,
}

/// The command of the path that takes all commands without a path.
pub(crate) const ANY_COMMAND: &str = "other";

impl Route {
    /// True for the path of all commands without a path.
    pub(crate) fn is_any(&self) -> bool {
        self.command.as_deref() == Some(ANY_COMMAND)
    }
}

/// True if a POST to this path is a read with parameters too long for a URL.
pub(crate) fn is_posted_read(routes: &Routes, path: &str) -> bool {
    let is_posted = |route: &Route| route.methods.split(", ").any(|method| method == "POST");
    routes
        .get(path)
        .is_some_and(|route| route.command.is_none() && is_posted(route))
}

/// True if this is the path of a read, for any method.
fn is_path_of_read(routes: &Routes, path: &str) -> bool {
    let is_segment = |(pattern, segment): (&str, &str)| {
        pattern == segment || (pattern.starts_with(':') && !segment.is_empty())
    };
    let is_like = |pattern: &str| {
        pattern.split('/').count() == path.split('/').count()
            && pattern.split('/').zip(path.split('/')).all(is_segment)
    };
    let mut reads = routes.iter().filter(|(_, route)| route.command.is_none());
    reads.any(|(pattern, _)| is_like(pattern))
}

/// The part of a POST that names its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallbackRoute<'a> {
    /// The path. It belongs to a read.
    Path,
    /// The command at the end of the path.
    Command(&'a str),
    /// The command in the body.
    Body,
}

impl<'a> CallbackRoute<'a> {
    pub(crate) fn of(routes: &Routes, path: &'a str) -> Self {
        if let Some(command) = command_of(path) {
            Self::Command(command)
        } else if is_path_of_read(routes, path) {
            Self::Path
        } else {
            Self::Body
        }
    }
}

/// The command at the end of a path. A slash may follow it.
pub(crate) fn command_of(path: &str) -> Option<&str> {
    let last = path.trim_end_matches('/').rsplit('/').next();
    last.filter(|last| commands::is_command(last))
}

/// A body that is read for its command only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command;

impl FromBody for Command {
    const SIDE: Side = Side::Callback;
    type Parsed = String;

    fn parse(body: &str) -> Result<String, Error> {
        let [command] = body::object(body, ["callbackCommand"])?;
        let command = command.required()?.text()?;
        if commands::is_command(&command) {
            return Ok(command);
        }
        Err(Error::new(
            Code::CommandUnknown,
            "callbackCommand: expected a command of OpenIM, such as callbackAfterQuitGroupCommand",
        ))
    }
}

/// Changes the path of a request. The query string stays.
pub(crate) fn redirect(request: &mut Request, path: &str) {
    if request.uri().path() == path {
        return;
    }
    let path_and_query = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = request.uri().clone().into_parts();
    // The path is part of a parsed URI, or a command, so parsing does not fail.
    if let Ok(path_and_query) = PathAndQuery::try_from(path_and_query) {
        parts.path_and_query = Some(path_and_query);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}
