-- Groups: their profile and owner, whether they are dismissed, and which of them are to be checked
-- against OpenIM. A group that is first heard of through a member gets a stub, so that every row of
-- group_members has its group here.
--
-- NULL means that OpenIM has never told.
CREATE TABLE groups (
    group_id             text COLLATE "C" NOT NULL PRIMARY KEY,
    name                 text,
    notification         text,
    introduction         text,
    face_url             text,
    -- A current member whose role_level is 100.
    owner_user_id        text COLLATE "C",
    ex                   text,
    -- 0 normal, 1 banned, 2 dismissed, 3 muted. Members of a dismissed group are not current,
    -- though their rows stay as they were: it can be brought back.
    status               integer,
    group_type           integer,
    need_verification    integer,
    look_member_info     integer,
    apply_member_friend  integer,
    created_in_openim_at timestamptz,
    -- Means nothing unless status is 2.
    dismissed_at         timestamptz,
    -- Set while the group is to be checked: since when, when that was last found again, and why.
    check_wanted_since   timestamptz,
    check_marked_at      timestamptz,
    check_reason         text,
    -- The last callback about the group itself, not about a member of it.
    last_callback_at     timestamptz,
    created_at           timestamptz NOT NULL,
    -- Moves only when a value does that OpenIM tells, and then always forward.
    updated_at           timestamptz NOT NULL
)
WITH (fillfactor = 85);

-- Groups of one status in order of group_id. For the dismissed (2) each read of a member looks here.
CREATE INDEX groups_by_status ON groups (status, group_id);

CREATE INDEX groups_check_wanted ON groups (group_id) WHERE check_wanted_since IS NOT NULL;

-- When the member came, if that was heard of.
ALTER TABLE group_members ADD COLUMN joined_at timestamptz;

-- Those who left, of a group of any size without reading those who are there. left_at is no column
-- that a patch sets, so patches stay heap-only.
CREATE INDEX group_members_left ON group_members (group_id, user_id) WHERE left_at IS NOT NULL;

-- Groups that the mirror knows by their members alone.
INSERT INTO groups (group_id, check_wanted_since, check_marked_at, check_reason, created_at, updated_at)
SELECT DISTINCT group_id, now(), now(), 'group_unknown', now(), now()
  FROM group_members;
