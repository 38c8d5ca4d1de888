-- Members who left with groups that a comparison has found dismissed, and nobody had told of: they count for
-- the limit, as those do whom OpenIM no longer names. 0 in the rows of an older version, which does not count
-- them.
ALTER TABLE reconcile_runs ADD COLUMN members_dismissed bigint NOT NULL DEFAULT 0;
