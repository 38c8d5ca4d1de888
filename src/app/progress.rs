//! What somebody who compares once sees of it.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::openim::{DriftOf, Tally};

/// How often progress is shown on a terminal.
const DRAWN: Duration = Duration::from_millis(100);
/// How often it is told elsewhere.
const TOLD: Duration = Duration::from_secs(5);
pub(super) fn print_drift(mut out: impl Write, drift: &DriftOf, is_json: bool) -> io::Result<()> {
    let DriftOf {
        group_id,
        user_id,
        drift,
    } = drift;
    let user = user_id.as_ref().map(|user| user.as_str());
    if is_json {
        let line = json!({
            "groupID": group_id.as_str(),
            "userID": user,
            "field": drift.field,
            "mirror": drift.mirror,
            "openim": drift.openim,
        });
        return writeln!(out, "{line}");
    }
    // As JSON, so that an empty text is seen and a line stays one.
    let shown = |value: &Option<String>| json!(value).to_string();
    let (mirror, openim) = (shown(&drift.mirror), shown(&drift.openim));
    let (group, field) = (json!(group_id.as_str()), drift.field);
    match user {
        Some(user) => write!(out, "group {group}, user {}: ", json!(user))?,
        None => write!(out, "group {group}: ")?,
    }
    writeln!(out, "{field} is {mirror} here, {openim} in OpenIM")
}

pub(super) fn print_result(
    mut out: impl Write,
    tally: &Tally,
    took: Duration,
    is_json: bool,
) -> io::Result<()> {
    let counts = tally.counts();
    let left = tally.left_groups();
    let seconds = took.as_secs_f64();
    if is_json {
        let left: Vec<_> = left
            .iter()
            .map(|(group, why)| {
                let group = group.as_ref().map(crate::domain::GroupId::as_str);
                json!({"groupID": group, "why": why})
            })
            .collect();
        let line = json!({
            "groupsSeen": counts.groups_seen,
            "groupsCompared": counts.groups_compared,
            "groupsLeft": counts.groups_left,
            "membersCompared": counts.members_compared,
            "repairs": {
                "memberAdded": counts.members_added,
                "memberRemoved": counts.members_removed,
                "memberChanged": counts.members_changed,
                "detailsChanged": counts.details_changed,
                "groupChanged": counts.groups_changed,
            },
            "left": left,
            "seconds": (seconds * 1000.0).round() / 1000.0,
        });
        return writeln!(out, "{line}");
    }
    writeln!(out, "{counts}")?;
    for (group, why) in left {
        match group {
            Some(group) => {
                writeln!(out, "left as it is: group {}: {why}", json!(group.as_str()))?;
            }
            None => writeln!(out, "left as they are: {why}")?,
        }
    }
    writeln!(out, "took {seconds:.1} s")
}

/// How far it is, for people.
pub(super) struct Progress<W> {
    notes: W,
    /// Absent where there is no terminal; drawn on standard error.
    bar: Option<ProgressBar>,
    /// What rows are that are not as in OpenIM.
    differing: &'static str,
}

impl<W: Write> Progress<W> {
    pub(super) fn new(notes: W, is_terminal: bool, is_dry: bool) -> Self {
        let bar = is_terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = "{bar:30} {pos}/{len} groups, {msg}, {eta} left";
            // The text above is a template.
            bar.with_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            )
        });
        let differing = match is_dry {
            true => "differ",
            false => "repaired",
        };
        Self {
            notes,
            bar,
            differing,
        }
    }

    pub(super) fn pause(&self) -> Duration {
        if self.bar.is_some() { DRAWN } else { TOLD }
    }

    pub(super) fn show(&mut self, tally: &Tally) {
        let counts = tally.counts();
        let (members, seen) = (counts.members_compared, counts.groups_seen.unsigned_abs());
        let (rows, differing) = (counts.repairs(), self.differing);
        let groups = tally.groups().max(seen);
        match &self.bar {
            Some(bar) => {
                bar.set_length(groups);
                bar.set_position(seen);
                bar.set_message(format!(
                    "{members} members compared, {rows} rows {differing}"
                ));
            }
            None => {
                // Notes that nobody reads are no reason to end.
                let _ = writeln!(
                    self.notes,
                    "{seen}/{groups} groups, {members} members compared, {rows} rows {differing}"
                );
            }
        }
    }

    pub(super) fn end(&mut self, tally: &Tally) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        } else {
            self.show(tally);
        }
    }
}
