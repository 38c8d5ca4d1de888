-- The mirror: one row per member of a group, current or gone, keyed as OpenIM keys them.
--
-- NULL in nickname, face_url, role_level and ex means that OpenIM has never told us; an empty
-- text is a value it did tell. Ids are COLLATE "C": their order is bytewise, and so are pages,
-- whatever locale the database has.
CREATE TABLE group_members (
    group_id         text COLLATE "C" NOT NULL,
    user_id          text COLLATE "C" NOT NULL,
    nickname         text,
    face_url         text,
    role_level       integer,
    ex               text,
    created_at       timestamptz NOT NULL,
    -- Moves only when a value that the API serves changes, and then always forward.
    updated_at       timestamptz NOT NULL,
    -- NULL for a row that no callback has named.
    last_callback_at timestamptz,
    -- Set when the member has left; the row stays as a tombstone.
    left_at          timestamptz,
    PRIMARY KEY (group_id, user_id)
)
-- Room on each page for the next version of a row, so that a patch stays heap-only (HOT) and
-- touches no index. For the same reason no index may use nickname, face_url, ex, updated_at or
-- last_callback_at, not even in INCLUDE or in a predicate.
WITH (fillfactor = 85);

-- One user's groups, in order of group_id.
CREATE INDEX group_members_by_user ON group_members (user_id, group_id);

-- The few with a role of their own: owners and admins of a group of any size without reading its
-- ordinary members (role 20).
CREATE INDEX group_members_by_role ON group_members (group_id, role_level, user_id)
    WHERE role_level <> 20;
