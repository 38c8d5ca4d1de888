//! Recordings of real servers: tests/recordings/README.md.

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::Value;

use super::openim::OpenIm;
use super::openim_callbacks::Callback;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings");

pub const MAIN: &str = "main-scenario.jsonl";
pub const MAIN_EVERYTHING: &str = "main-every-callback.jsonl.gz";
pub const PATCH16: &str = "patch16-scenario.jsonl";
pub const PATCH16_RANDOM: &str = "patch16-random.jsonl.gz";
const PATCH16_RANDOM_FINAL: &str = "patch16-random-final.jsonl.gz";

/// A call of the API with its answer, or a callback; the rest of each is empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Line {
    /// The path of a call.
    pub rest: String,
    pub request: Value,
    pub reply: Value,
    /// The target of a callback: its path, and a query behind it.
    pub callback: String,
    pub headers: Value,
    pub body: String,
}

/// Last answer of REST about a group.
#[derive(Debug, Deserialize)]
struct Final {
    group: Value,
    members: Option<Vec<Value>>,
    ids: Value,
}

impl Line {
    /// The last part of a callback's path.
    pub fn command(&self) -> &str {
        let path = self.callback.split('?').next().unwrap_or_default();
        path.trim_start_matches('/')
    }

    /// The group that a callback names.
    pub fn group(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body["groupID"].as_str().unwrap_or_default().to_owned()
    }

    pub fn told(&self) -> Callback {
        let operation_id = self.headers["Operationid"].as_str();
        Callback {
            command: self.command().to_owned(),
            body: self.body.clone(),
            operation_id: operation_id.unwrap_or_default().to_owned(),
        }
    }
}

fn lines<T: for<'de> Deserialize<'de>>(file: &str) -> Vec<T> {
    let bytes = std::fs::read(Path::new(FOLDER).join(file)).unwrap();
    let mut text = String::new();
    if file.ends_with(".gz") {
        GzDecoder::new(&bytes[..])
            .read_to_string(&mut text)
            .unwrap();
    } else {
        text = String::from_utf8(bytes).unwrap();
    }
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

pub fn recorded(file: &str) -> Vec<Line> {
    lines(file)
}

/// OpenIM as it was at the end of the random operations.
pub fn after_random_operations() -> OpenIm {
    let mut openim = OpenIm::default();
    for Final {
        group,
        members,
        ids,
    } in lines(PATCH16_RANDOM_FINAL)
    {
        openim.load(&group, &members.unwrap_or_default(), &ids);
    }
    openim
}

/// OpenIM as the reads at the end of a scenario show it, of the groups that were read.
pub fn as_read(lines: &[Line]) -> OpenIm {
    let mut openim = OpenIm::default();
    let of = |path: &str, group: &Value| {
        let mut reads = lines.iter().filter(|line| line.rest == path);
        let read = reads.find(|read| read.request["groupID"] == *group);
        read.map(|read| read.reply["data"].clone())
            .unwrap_or_default()
    };
    for read in lines
        .iter()
        .filter(|line| line.rest == "/group/get_groups_info")
    {
        let group = &read.reply["data"]["groupInfos"][0];
        let list = of("/group/get_group_member_list", &group["groupID"]);
        let members = list["members"].as_array().cloned().unwrap_or_default();
        let version = of("/group/get_incremental_group_members", &group["groupID"]);
        openim.load(group, &members, &version);
    }
    openim
}
