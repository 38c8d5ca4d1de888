-- Callbacks whose body could not be understood. OpenIM never sends a callback again, so what it
-- said is kept, for somebody to look at and for a later version of the service to take in.
CREATE TABLE rejected_callbacks (
    -- In order of arrival, which is also the order in which they go when there are too many.
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at  timestamptz NOT NULL,
    path         text NOT NULL,
    -- Of OpenIM's request header; several callbacks may share one.
    operation_id text,
    -- The reason, as the answer gave it: a stable code, and what exactly.
    code         text NOT NULL,
    detail       text NOT NULL,
    -- As it came, not as text: it may not be one. The first MiB of it.
    body         bytea NOT NULL,
    -- How long it was before it was cut.
    body_bytes   bigint NOT NULL
);
