-- What OpenIM's REST API tells and its callbacks do not, and what is known of the last comparison
-- with it. All of it stays empty where the service has no access to that API.

ALTER TABLE group_members
    -- What OpenIM shows for a member: nickname and face_url or, where these are empty, what is in
    -- the user's profile. NULL: not known.
    ADD COLUMN display_nickname text,
    ADD COLUMN display_face_url text,
    -- 1 by an administrator, 2 by invitation, 3 by search, 4 by QR code; 0 where OpenIM did not note it.
    ADD COLUMN join_source      integer,
    ADD COLUMN inviter_user_id  text,
    ADD COLUMN operator_user_id text,
    -- NULL where the member is not muted, too.
    ADD COLUMN mute_end_at      timestamptz;

-- How far each group is known to be as in OpenIM. A table of its own, so that a comparison that
-- finds no difference writes to neither of the others.
CREATE TABLE group_checks (
    group_id    text COLLATE "C" NOT NULL PRIMARY KEY,
    -- OpenIM's version of the group when it was found equal or was made so: an unsigned number,
    -- here with the same bits. NULL: the next comparison
    -- has to read the whole group.
    version     bigint,
    -- Of which count of versions.
    version_id  text COLLATE "C",
    -- This database's time before OpenIM was asked, of the comparison that began last. One that began
    -- before it changes nothing any more.
    compared_at timestamptz NOT NULL,
    -- The same of the last one for which the whole group was read, not only what had changed.
    read_at     timestamptz NOT NULL,
    -- Whether a callback about the group was written since then.
    is_touched  boolean NOT NULL DEFAULT false
)
WITH (fillfactor = 85);

-- Comparisons of all groups with OpenIM, the last ones.
CREATE TABLE reconcile_runs (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    started_at        timestamptz NOT NULL,
    -- NULL while it goes on, and where its process ended before it.
    ended_at          timestamptz,
    -- Whether each group was read as a whole.
    is_full           boolean NOT NULL,
    -- Why it did not come to its end, or why members whom OpenIM does not have were left; NULL: neither.
    stopped_by        text,
    groups_seen       bigint NOT NULL DEFAULT 0,
    groups_compared   bigint NOT NULL DEFAULT 0,
    -- Groups that could not be compared, or were left for a person to decide.
    groups_left       bigint NOT NULL DEFAULT 0,
    members_compared  bigint NOT NULL DEFAULT 0,
    members_added     bigint NOT NULL DEFAULT 0,
    members_removed   bigint NOT NULL DEFAULT 0,
    members_changed   bigint NOT NULL DEFAULT 0,
    details_changed   bigint NOT NULL DEFAULT 0,
    groups_changed    bigint NOT NULL DEFAULT 0
);
