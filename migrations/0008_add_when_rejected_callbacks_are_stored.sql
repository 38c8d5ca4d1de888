-- Rejected callbacks are kept for some days from when they can be seen, which is not when they came:
-- one can wait in a spool for long. Those of before count from now on. An older instance that runs
-- beside gives no value.
ALTER TABLE rejected_callbacks ADD COLUMN stored_at timestamptz NOT NULL DEFAULT now();
