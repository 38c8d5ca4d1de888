//! The subcommand `rejected`: lists, shows, replays and deletes rejected callbacks. It works beside a running service,
//! on its private Postgres too.

use std::io::Write;

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::database::{self, Private};
use super::{Error, PRIVATE_STOP_TIMEOUT};
use crate::config::{Config, RejectedCommand, Selection};
use crate::domain::{Change, Operators, Rejected};
use crate::http;
use crate::ingest::{self, Ingest};
use crate::store::{RejectedSummary, Store};

/// Runs `command`. The result goes to `out`, notes about it to `notes`.
///
/// # Errors
/// See [`Error`].
pub async fn rejected(
    config: &Config,
    command: RejectedCommand,
    mut out: impl Write,
    mut notes: impl Write,
) -> Result<(), Error> {
    let (database, server) = database::find(config, Private::Shared).await?;
    let store = database.open().await?;
    let done = match command {
        RejectedCommand::List { limit, json } => list(&store, limit, json, &mut out).await,
        RejectedCommand::Show { id } => show(&store, id, &mut out, &mut notes).await,
        RejectedCommand::Replay(which) => {
            // Without a spool: an operator waits, and can repeat the command.
            let ingest = Ingest::new(store.clone(), config.rejected, None);
            let done = replay(&store, &ingest, &config.operators, &which, &mut out).await;
            ingest.close().await;
            done
        }
        RejectedCommand::Delete(which) => delete(&store, &which, &mut out).await,
    };
    store.close().await;
    database::stop(server, PRIVATE_STOP_TIMEOUT).await?;
    done
}

fn written(time: OffsetDateTime) -> String {
    // A time of Postgres has a year of four digits, or reading it fails.
    time.format(&Rfc3339).unwrap_or_default()
}

async fn list(store: &Store, limit: u32, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let all = store.list_rejected(limit).await?;
    if !json {
        writeln!(
            out,
            "{:>8}  {:<27}  {:<16}  {:>9}  path, detail",
            "id", "received", "code", "bytes"
        )?;
    }
    for summary in all {
        let RejectedSummary {
            id,
            received_at,
            path,
            operation_id,
            code,
            detail,
            body_bytes,
        } = summary;
        let received_at = written(received_at);
        if json {
            let line = json!({
                "id": id,
                "receivedAt": received_at,
                "path": path,
                "operationID": operation_id,
                "code": code,
                "detail": detail,
                "bodyBytes": body_bytes,
            });
            writeln!(out, "{line}")?;
        } else {
            writeln!(
                out,
                "{id:>8}  {received_at:<27}  {code:<16}  {body_bytes:>9}  {path}, {detail}"
            )?;
        }
    }
    Ok(())
}

async fn find(store: &Store, id: i64) -> Result<Rejected, Error> {
    let found = store.rejected(id).await?;
    found.ok_or_else(|| Error::Rejected(format!("there is no rejected callback {id}")))
}

async fn show(
    store: &Store,
    id: i64,
    out: &mut impl Write,
    notes: &mut impl Write,
) -> Result<(), Error> {
    let rejected = find(store, id).await?;
    writeln!(notes, "received     {}", written(rejected.received_at))?;
    writeln!(notes, "path         {}", rejected.path)?;
    let operation_id = rejected.operation_id.as_deref().unwrap_or("none");
    writeln!(notes, "operationID  {operation_id}")?;
    writeln!(notes, "code         {}", rejected.code)?;
    writeln!(notes, "detail       {}", rejected.detail)?;
    let cut = if rejected.is_cut() { ", cut" } else { "" };
    writeln!(notes, "body         {} bytes{cut}", rejected.body_bytes)?;
    out.write_all(&rejected.body)?;
    out.flush()?;
    Ok(())
}

/// Processes rejected callbacks in the order of their arrival, so that the last one of a member counts.
async fn replay(
    store: &Store,
    ingest: &Ingest,
    operators: &Operators,
    which: &Selection,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut ids = which.ids.clone();
    ids.sort_unstable();
    ids.dedup();
    let mut ids = ids.into_iter();
    let mut last = 0;
    let mut refused = 0;
    loop {
        let next = if which.all {
            store.next_rejected(last).await?
        } else {
            ids.next()
        };
        let Some(id) = next else { break };
        last = id;
        let Some(rejected) = store.rejected(id).await? else {
            // With --all, the service has just deleted it because of its age.
            if !which.all {
                refused += 1;
                writeln!(out, "{id}: there is none")?;
            }
            continue;
        };
        let change = if rejected.is_cut() {
            Err("the body was cut when it was kept".to_owned())
        } else if let Some(change) = ingest::refused_change(&rejected) {
            change
        } else {
            http::understand(&rejected.path, &rejected.body, OffsetDateTime::now_utc())
        };
        match change {
            Ok(change) => {
                let event = operators.sort_out(change.event);
                ingest.submit(Change { event, ..change }).await?;
                store.delete_rejected(id).await?;
                writeln!(out, "{id}: applied")?;
            }
            Err(why) => {
                refused += 1;
                writeln!(out, "{id}: still not understood: {why}")?;
            }
        }
    }
    match refused {
        0 => Ok(()),
        n => Err(Error::Rejected(format!("{n} could not be applied"))),
    }
}

async fn delete(store: &Store, which: &Selection, out: &mut impl Write) -> Result<(), Error> {
    let mut deleted = 0;
    let mut missing = Vec::new();
    if which.all {
        deleted = store.delete_rejected_up_to(i64::MAX).await?;
    }
    for id in &which.ids {
        if store.delete_rejected(*id).await? {
            deleted += 1;
        } else {
            missing.push(id.to_string());
        }
    }
    writeln!(out, "deleted {deleted}")?;
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    Err(Error::Rejected(format!(
        "there is no rejected callback {missing}"
    )))
}
