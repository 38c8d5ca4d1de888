//! An OpenIM and a mirror of it, and what is not the same in both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use openim_group_mirror::domain::{DISMISSED, GroupId};
use openim_group_mirror::http::understand;
use openim_group_mirror::ingest::{Ingest, Retention, Spool};
use openim_group_mirror::openim::{Client, OpenimAccess};
use openim_group_mirror::reconcile::{
    DriftEntry, Error, Mode, ReconcileParts, ReconcileSettings, Reconciler, Report,
};
use openim_group_mirror::secret::Secret;
use openim_group_mirror::store::{RunCounts, Store};
use openim_group_mirror::telemetry::Metrics;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::openim::{ADMIN_ID, OpenIm, Operation};
use super::openim_callbacks::Callback;
use super::openim_server::{OpenImServer, SECRET};
use super::{TestDb, run, until};

/// Both, each of the test's own, or shared with another replica.
pub struct Pair {
    pub server: Arc<OpenImServer>,
    pub db: Arc<TestDb>,
    pub store: Store,
    pub ingest: Ingest,
    pub reconciler: Reconciler,
}

/// Access to the model's server.
pub fn access(server: &OpenImServer) -> OpenimAccess {
    OpenimAccess {
        url: server.url.clone(),
        admin_user_id: ADMIN_ID.into(),
        secret: Secret::from(SECRET.to_owned()),
        timeout: Duration::from_secs(5),
    }
}

/// Short times, so that nobody waits for long.
pub fn settings() -> ReconcileSettings {
    ReconcileSettings {
        interval: Duration::from_secs(600),
        full_interval: Duration::from_secs(86400),
        // A mark may be a moment old when its group is compared.
        delay: Duration::ZERO,
        // What it tells is so.
        settling: Duration::ZERO,
        concurrency: 4,
    }
}

/// Lanes of a process that has no spool.
pub fn ingest(store: &Store) -> Ingest {
    Ingest::new(store.clone(), RETENTION, None)
}

const RETENTION: Retention = Retention {
    keep_days: 1,
    max_bytes: 0,
};

impl Pair {
    pub async fn new() -> Self {
        Self::with(settings()).await
    }

    pub async fn with(settings: ReconcileSettings) -> Self {
        let (db, server) = (TestDb::new().await, OpenImServer::start().await);
        Self::made(Arc::new(db), Arc::new(server), settings).await
    }

    /// Another process on the same two.
    pub async fn again(&self) -> Self {
        Self::made(Arc::clone(&self.db), Arc::clone(&self.server), settings()).await
    }

    async fn made(db: Arc<TestDb>, server: Arc<OpenImServer>, settings: ReconcileSettings) -> Self {
        let store = db.database().open().await.unwrap();
        let ingest = ingest(&store);
        Self::of(db, server, store, ingest, settings)
    }

    /// Makes a pair with a process that has a spool.
    pub async fn with_spool(self) -> Self {
        let (db, server) = (Arc::clone(&self.db), Arc::clone(&self.server));
        self.close().await;
        let store = db.database().open().await.unwrap();
        let folder = run().folder("spool");
        let spool = tokio::task::spawn_blocking(move || Spool::in_folder(&folder, 1 << 20));
        let spool = spool.await.unwrap().unwrap();
        let ingest = Ingest::new(store.clone(), RETENTION, Some(spool));
        ingest.settled().await;
        Self::of(db, server, store, ingest, settings())
    }

    /// Makes a pair with a timeout for answers.
    pub async fn patient_for(mut self, timeout: Duration) -> Self {
        let access = OpenimAccess {
            timeout,
            ..access(&self.server)
        };
        let parts = ReconcileParts {
            store: self.store.clone(),
            ingest: self.ingest.clone(),
            metrics: Metrics::new().unwrap(),
        };
        let client = Client::new(access, parts.metrics.clone()).unwrap();
        self.reconciler = Reconciler::new(client, settings(), parts);
        self
    }

    fn of(
        db: Arc<TestDb>,
        server: Arc<OpenImServer>,
        store: Store,
        ingest: Ingest,
        settings: ReconcileSettings,
    ) -> Self {
        let metrics = Metrics::new().unwrap();
        let client = Client::new(access(&server), metrics.clone()).unwrap();
        let parts = ReconcileParts {
            store: store.clone(),
            ingest: ingest.clone(),
            metrics,
        };
        let reconciler = Reconciler::new(client, settings, parts);
        Self {
            server,
            db,
            store,
            ingest,
            reconciler,
        }
    }

    pub fn openim(&self) -> MutexGuard<'_, OpenIm> {
        let openim = self.server.openim.lock();
        openim.unwrap_or_else(PoisonError::into_inner)
    }

    /// Has OpenIM do something; what it would tell of it.
    #[track_caller]
    pub fn act(&self, group: &str, operation: &Operation) -> Vec<Callback> {
        let told = self.openim().apply(group, operation);
        told.unwrap_or_else(|_| panic!("OpenIM refuses {operation:?}"))
    }

    /// And tells it.
    pub async fn act_and_tell(&self, group: &str, operation: &Operation) {
        for callback in self.act(group, operation) {
            self.tell(&callback).await;
        }
    }

    pub async fn tell(&self, callback: &Callback) {
        tell(&self.ingest, callback, OffsetDateTime::now_utc()).await;
    }

    /// Runs once, over all groups.
    pub async fn cycle(&self) -> RunCounts {
        self.compare(&[], Mode::default()).await.unwrap()
    }

    pub async fn compare(&self, groups: &[&str], mode: Mode) -> Result<RunCounts, Error> {
        let groups: Vec<GroupId> = groups.iter().map(|group| id(group)).collect();
        let report = Report::default();
        let never = CancellationToken::new();
        let compared = self
            .reconciler
            .reconcile(&groups, mode, &report, &never)
            .await;
        compared.map(|()| report.counts())
    }

    /// Report of a dry run.
    pub async fn drift(&self) -> Vec<DriftEntry> {
        let mut all = Vec::new();
        let report = Report::default();
        let mut tell = |drift| all.push(drift);
        let looked = self.reconciler.dry_run(&[], &report, &mut tell).await;
        looked.unwrap();
        all
    }

    /// Every row as it lies there, so that a write shows even where it changes nothing.
    pub async fn rows_as_they_lie(&self) -> Vec<Value> {
        until("nobody fills in when members left", async || {
            let emptying = "select group_id from groups where emptying_at is not null";
            self.db.rows(emptying).await.is_empty()
        })
        .await;
        let mut rows = self
            .db
            .rows("select *, ctid::text, xmin::text, xmax::text from groups order by group_id")
            .await;
        rows.extend(
            self.db
                .rows(
                    "select *, ctid::text, xmin::text, xmax::text from group_members
                      order by group_id, user_id",
                )
                .await,
        );
        rows
    }

    /// Holds what [`Self::rows_as_they_lie`] gave against what is there now.
    pub async fn assert_nothing_written_since(&self, before: &[Value]) {
        let after = self.rows_as_they_lie().await;
        let is_new = |row: &&Value| !before.contains(row);
        let written: Vec<_> = after.iter().filter(is_new).take(3).collect();
        let was = |row: &&Value| {
            let same = |name: &str, other: &Value| other[name] == row[name];
            before
                .iter()
                .find(|other| same("group_id", other) && same("user_id", other))
                .cloned()
        };
        let were: Vec<_> = written.iter().map(was).collect();
        assert!(
            written.is_empty(),
            "written: {written:#?}\nbefore: {were:#?}"
        );
        assert_eq!(after.len(), before.len());
    }

    /// A member's row.
    pub async fn member(&self, group: &str, user: &str) -> Option<Value> {
        let sql = format!(
            "select nickname, m.face_url, role_level, m.ex, display_nickname, display_face_url,
                    join_source, inviter_user_id, mute_end_at is not null as is_muted,
                    not ({CURRENT}) as is_gone
               from group_members m join groups using (group_id)
              where group_id = '{group}' and user_id = '{user}'"
        );
        self.db.rows(&sql).await.pop()
    }

    /// Reason of a group's mark.
    pub async fn check(&self, group: &str) -> Option<String> {
        let sql = format!("select check_reason from groups where group_id = '{group}'");
        let row = self.db.rows(&sql).await.pop()?;
        row["check_reason"].as_str().map(str::to_owned)
    }

    /// Until a group wants a check for this reason: marks are written when nobody waits for them.
    pub async fn until_check(&self, group: &str, reason: &str) {
        until("a check is wanted", async || {
            self.check(group).await.as_deref() == Some(reason)
        })
        .await;
    }

    /// Differences of mirror and OpenIM, as lines for people.
    pub async fn differences(&self) -> Vec<String> {
        let mirror = mirrored(&self.db).await;
        let mut held = held(&self.openim());
        // Of a group that is gone for everybody the mirror need not have heard.
        held.retain(|key, status| {
            *status != json!(DISMISSED) || key.2 != "status" || mirror.contains_key(key)
        });
        let keys: BTreeSet<_> = mirror.keys().chain(held.keys()).collect();
        let differs = |key: &&&(String, String, &'static str)| mirror.get(**key) != held.get(**key);
        let line = |key: &(String, String, &'static str)| {
            let (here, there) = (mirror.get(key), held.get(key));
            format!("{key:?}: {here:?} here, {there:?} in OpenIM")
        };
        keys.iter()
            .filter(|key| differs(key))
            .map(|key| line(key))
            .collect()
    }

    #[track_caller]
    pub fn assert_equal(&self) -> impl Future<Output = ()> {
        let at = std::panic::Location::caller();
        async move {
            let differences = self.differences().await;
            assert!(differences.is_empty(), "{at}: {differences:#?}");
        }
    }

    pub async fn close(self) {
        self.ingest.close().await;
        self.store.close().await;
    }
}

fn id(group: &str) -> GroupId {
    GroupId::parse(group.into()).unwrap()
}

/// Tells a mirror what OpenIM tells.
pub async fn tell(ingest: &Ingest, callback: &Callback, at: OffsetDateTime) {
    let Callback { command, body, .. } = callback;
    let change = understand(&format!("/{command}"), body.as_bytes(), at);
    let change = change.unwrap_or_else(|why| panic!("{why}: {body}"));
    ingest.submit(change).await.unwrap();
}

/// Values by group, user (empty: of the group itself) and name.
type Facts = BTreeMap<(String, String, &'static str), Value>;

const OF_GROUP: [&str; 12] = [
    "groupName",
    "notification",
    "introduction",
    "faceURL",
    "ex",
    "needVerification",
    "lookMemberInfo",
    "applyMemberFriend",
    "ownerUserID",
    "status",
    "groupType",
    "createTime",
];

const OF_MEMBER: [&str; 9] = [
    "nickname",
    "faceURL",
    "roleLevel",
    "ex",
    "joinTime",
    "joinSource",
    "inviterUserID",
    "operatorUserID",
    "muteEndTime",
];

/// SQL condition of a current member, for `group_members` with `groups`.
pub const CURRENT: &str = "left_at is null and status is distinct from 2
    and (emptying_at is null or came_at_dismissal = dismissals)";

/// The group as OpenIM shows it. A dismissed group has only its status.
fn held(openim: &OpenIm) -> Facts {
    let mut facts = Facts::new();
    for (group_id, group) in &openim.groups {
        let mut add = |user: &str, name, value: Value| {
            facts.insert((group_id.clone(), user.to_owned(), name), value);
        };
        if group.is_dismissed() {
            add("", "status", json!(group.status));
            continue;
        }
        let shown = openim.shown_group(group_id).unwrap();
        for name in OF_GROUP {
            add("", name, shown[name].clone());
        }
        for user in group.members.keys() {
            let Some(shown) = openim.shown_member(group_id, user) else {
                continue;
            };
            for name in OF_MEMBER {
                add(user, name, shown[name].clone());
            }
        }
    }
    facts
}

/// The group in the mirror, with the names of OpenIM.
async fn mirrored(db: &TestDb) -> Facts {
    let millis =
        |column: &str| format!("coalesce((extract(epoch from {column}) * 1000)::bigint, 0)");
    let groups = format!(
        r#"select group_id, name as "groupName", notification, introduction, face_url as "faceURL",
                  ex, need_verification as "needVerification",
                  look_member_info as "lookMemberInfo",
                  apply_member_friend as "applyMemberFriend",
                  coalesce(owner_user_id, '') as "ownerUserID", status,
                  group_type as "groupType", {} as "createTime"
             from groups"#,
        millis("created_in_openim_at")
    );
    let members = format!(
        r#"select m.group_id, user_id, display_nickname as "nickname",
                  display_face_url as "faceURL", role_level as "roleLevel", m.ex,
                  {} as "joinTime", join_source as "joinSource",
                  inviter_user_id as "inviterUserID", operator_user_id as "operatorUserID",
                  {} as "muteEndTime", m.nickname as own_nickname, m.face_url as own_face
             from group_members m join groups g using (group_id)
            where {CURRENT}"#,
        millis("joined_at"),
        millis("mute_end_at")
    );
    let mut facts = Facts::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for row in db.rows(&groups).await {
        let names: &[&str] = if row["status"] == 2 {
            &["status"]
        } else {
            &OF_GROUP
        };
        for name in names {
            facts.insert(
                (text(&row["group_id"]), String::new(), name),
                row[*name].clone(),
            );
        }
    }
    for row in db.rows(&members).await {
        let key = |name| (text(&row["group_id"]), text(&row["user_id"]), name);
        for name in OF_MEMBER {
            facts.insert(key(name), row[name].clone());
        }
        // What the mirror takes for a member's own is what OpenIM shows, or nothing.
        for (own, shown) in [("own_nickname", "nickname"), ("own_face", "faceURL")] {
            let is_own = row[own].as_str().is_some_and(|own| !own.is_empty());
            if is_own && row[own] != row[shown] {
                facts.insert(key(own), row[own].clone());
            }
        }
    }
    facts
}
