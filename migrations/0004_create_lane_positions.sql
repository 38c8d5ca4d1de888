-- How far each lane of a spool has come, so that what is written again after a connection broke is
-- written once. A spool is the folder where one instance keeps changes while the database is away;
-- its number is in that folder. Lane 0 is the one that drains the spool; the others write directly.
CREATE TABLE lane_positions (
    spool_id bigint   NOT NULL,
    lane     smallint NOT NULL,
    -- Lane 0: the number of the last entry of the spool that is in. Others: the lane's last batch
    -- that was not patches alone. Moved in the same transaction.
    seq      bigint   NOT NULL,
    PRIMARY KEY (spool_id, lane)
)
-- A few rows, each updated with every such batch.
WITH (fillfactor = 10);
