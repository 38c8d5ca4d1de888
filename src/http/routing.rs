//! Which operation takes a callback. OpenIM appends "/" and the command to its `url`: behind a path that is
//! the last segment, behind a query string it is a part of that, and a proxy may cut it off. The body
//! always has it.

use poem::Request;
use poem::http::Uri;
use poem::http::uri::PathAndQuery;

use super::body::FromBody;
use super::callbacks::commands;
use super::document::{Routes, is_of_a_read};
use super::error::{Code, Door, Error};
use super::json;

/// How the operation of a POST is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way<'a> {
    /// By the path: it is a read's.
    Path,
    /// By the command that the path ends with.
    Command(&'a str),
    /// By the command in the body.
    Body,
}

impl<'a> Way<'a> {
    pub(super) fn of(routes: &Routes, path: &'a str) -> Self {
        if let Some(command) = command_of(path) {
            Self::Command(command)
        } else if is_of_a_read(routes, path) {
            Self::Path
        } else {
            Self::Body
        }
    }
}

/// The command that a path ends with, if it does. A slash may follow.
pub(super) fn command_of(path: &str) -> Option<&str> {
    let last = path.trim_end_matches('/').rsplit('/').next();
    last.filter(|last| commands::is_command(last))
}

/// A body of which only the command is of interest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command;

impl FromBody for Command {
    const DOOR: Door = Door::Callback;
    type Parsed = String;

    fn parse(body: &str) -> Result<String, Error> {
        let [command] = json::object(body, ["callbackCommand"])?;
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

/// Gives a request another path. Its query string stays.
pub(super) fn redirect(request: &mut Request, path: &str) {
    if request.uri().path() == path {
        return;
    }
    let path_and_query = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = request.uri().clone().into_parts();
    // The parts of a URI that was already parsed, or a command; if not, the path stays as it was.
    if let Ok(path_and_query) = PathAndQuery::try_from(path_and_query) {
        parts.path_and_query = Some(path_and_query);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}
