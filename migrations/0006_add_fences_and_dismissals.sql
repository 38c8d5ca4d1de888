-- Comparisons with OpenIM are ordered against callbacks by transactions, not by a clock, which can be
-- set back; and a dismissal is one write of the group, whatever the number of its members.

ALTER TABLE groups
    -- The transaction of the last callback about the group itself, as pg_current_xact_id() has it.
    ADD COLUMN last_callback_xid bigint,
    -- The transaction that marked the group last.
    ADD COLUMN check_marked_xid  bigint,
    -- How often the group was dismissed.
    ADD COLUMN dismissals        integer NOT NULL DEFAULT 0,
    -- Set by a dismissal, to its time, and cleared once each member of that time has a left_at. Until
    -- then a row without left_at is one of a member who left at this time, unless its
    -- came_at_dismissal says otherwise.
    ADD COLUMN emptying_at       timestamptz;

ALTER TABLE group_members
    -- The transaction of the last callback about the member.
    ADD COLUMN last_callback_xid bigint,
    -- The group's number of dismissals when the member came, where the group was being emptied.
    ADD COLUMN came_at_dismissal integer;

ALTER TABLE group_checks
    -- The transactions that had ended when the comparison began that gave the version, as
    -- pg_current_snapshot() has it. A callback of any other transaction may be newer than the version.
    ADD COLUMN fence   text,
    -- A later version at which the group was seen, and when: OpenIM tells a version before its caches give
    -- the rows of it, so what has changed is asked since the older one for some seconds more.
    ADD COLUMN later_version bigint,
    ADD COLUMN later_at      timestamptz,
    -- Users whom callbacks have named since, an empty one for the group itself; NULL: too many to say.
    -- Whoever is not among them is as in OpenIM at that version.
    ADD COLUMN touched text[] DEFAULT '{}',
    -- How often that was added to.
    ADD COLUMN touches bigint NOT NULL DEFAULT 0;

-- The few groups that are being emptied: each read and each patch of a member looks here.
CREATE INDEX groups_emptying ON groups (group_id) WHERE emptying_at IS NOT NULL;

-- Instances of an older version only set the status, and leave the owner. They also write callbacks
-- without the number of their transaction.
CREATE FUNCTION group_mirror_dismissed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.dismissals := OLD.dismissals + 1;
    NEW.emptying_at := COALESCE(NEW.dismissed_at, now());
    NEW.owner_user_id := NULL;
    RETURN NEW;
END $$;
CREATE TRIGGER group_mirror_dismissed BEFORE UPDATE ON groups FOR EACH ROW
    WHEN (NEW.status = 2 AND OLD.status IS DISTINCT FROM 2 AND NEW.dismissals = OLD.dismissals)
    EXECUTE FUNCTION group_mirror_dismissed();

CREATE FUNCTION group_mirror_called_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.last_callback_xid := pg_current_xact_id()::text::bigint;
    RETURN NEW;
END $$;
CREATE TRIGGER group_mirror_called_back BEFORE UPDATE ON groups FOR EACH ROW
    WHEN (NEW.last_callback_at IS DISTINCT FROM OLD.last_callback_at
          AND NEW.last_callback_xid IS NOT DISTINCT FROM OLD.last_callback_xid)
    EXECUTE FUNCTION group_mirror_called_back();
CREATE TRIGGER group_mirror_called_back BEFORE UPDATE ON group_members FOR EACH ROW
    WHEN (NEW.last_callback_at IS DISTINCT FROM OLD.last_callback_at
          AND NEW.last_callback_xid IS NOT DISTINCT FROM OLD.last_callback_xid)
    EXECUTE FUNCTION group_mirror_called_back();
CREATE TRIGGER group_mirror_called_back_first BEFORE INSERT ON group_members FOR EACH ROW
    WHEN (NEW.last_callback_at IS NOT NULL AND NEW.last_callback_xid IS NULL)
    EXECUTE FUNCTION group_mirror_called_back();

-- The server whose transactions the numbers above are of: those of another mean nothing after a dump is
-- loaded here. NULL where this role may not ask.
CREATE TABLE transaction_origin (system_identifier bigint);
DO $$
BEGIN
    INSERT INTO transaction_origin SELECT system_identifier FROM pg_control_system();
EXCEPTION WHEN insufficient_privilege THEN
    INSERT INTO transaction_origin VALUES (NULL);
END $$;

-- Groups that were dismissed until now. What readers see of them stays the same, so no updated_at moves.
UPDATE groups
   SET dismissals = 1, emptying_at = COALESCE(dismissed_at, updated_at), owner_user_id = NULL
 WHERE status = 2;
