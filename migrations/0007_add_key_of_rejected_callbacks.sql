-- What tells a rejected callback from all others: the digest of what came, and when. One whose
-- insertion was answered to nobody is inserted once more, and is there once.
--
-- Older instances leave it empty, as it is for what they have kept.
ALTER TABLE rejected_callbacks ADD COLUMN key bytea;
CREATE UNIQUE INDEX rejected_callbacks_key ON rejected_callbacks (key);
