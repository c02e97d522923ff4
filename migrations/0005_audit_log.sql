-- Who changed what, when. Written in the transaction of the change; only ever added to. No foreign keys: the record
-- outlives what it is about.
CREATE TABLE audit_log (
    id             bigint      NOT NULL GENERATED ALWAYS AS IDENTITY CONSTRAINT audit_log_pkey PRIMARY KEY,
    at             timestamptz NOT NULL DEFAULT now(),
    actor          text        NOT NULL,  -- api-<number of the API secret>, cli, config; never a secret
    action         text        NOT NULL,
    broadcaster_id uuid,
    key_id         uuid,
    node           text,
    request_id     text,                  -- the one in the answer and in the log
    detail         jsonb       NOT NULL   -- such as the names of the changed fields; never their values
);

CREATE INDEX audit_log_of_key ON audit_log (key_id, id) WHERE key_id IS NOT NULL;
CREATE INDEX audit_log_of_broadcaster ON audit_log (broadcaster_id, id) WHERE broadcaster_id IS NOT NULL;
