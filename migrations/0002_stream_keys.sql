-- What admits a publisher to one path. The secret itself is nowhere: only its SHA-256.
CREATE TABLE stream_keys (
    id                 uuid        NOT NULL CONSTRAINT stream_keys_pkey PRIMARY KEY,  -- UUIDv7
    broadcaster_id     uuid        NOT NULL CONSTRAINT stream_keys_broadcaster_exists REFERENCES broadcasters (id),
    path               text        NOT NULL,
    secret_hash        bytea       NOT NULL CONSTRAINT stream_keys_secret_hash_unique UNIQUE
                                            CONSTRAINT stream_keys_secret_hash_length CHECK (length(secret_hash) = 32),
    hint               text        NOT NULL,               -- the secret's last four characters
    label              text,
    title              text,
    description        text,
    metadata           jsonb       NOT NULL,
    -- 'expired' is no stored status: it follows from expires_at and the clock.
    status             text        NOT NULL CONSTRAINT stream_keys_status_known
                                            CHECK (status IN ('active', 'disabled', 'revoked')),
    on_conflict        text        NOT NULL,
    playback           text        NOT NULL,
    expires_at         timestamptz,
    -- Grows with every change that Redis must hear of. projected_revision is the revision that Redis is known to have.
    revision           bigint      NOT NULL DEFAULT 1,
    projected_revision bigint      NOT NULL DEFAULT 0,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    revoked_at         timestamptz,
    -- Written by the history writer, in the transaction that writes a stream's first row: no change of the key, so
    -- neither revision nor updated_at follows.
    last_used_at       timestamptz,
    use_count          bigint      NOT NULL DEFAULT 0,
    CONSTRAINT stream_keys_revoked_has_time CHECK ((status = 'revoked') = (revoked_at IS NOT NULL))
);

-- One key at a time admits to a path. Revoking frees it.
CREATE UNIQUE INDEX stream_keys_path_in_use ON stream_keys (path) WHERE status <> 'revoked';

-- For lists that are asked for one path, revoked keys included.
CREATE INDEX stream_keys_path ON stream_keys (path, id);

CREATE INDEX stream_keys_broadcaster ON stream_keys (broadcaster_id, id);

-- The outbox of key changes IS the set of keys that this index holds. A queue beside the table could disagree with it,
-- would have to be ordered and pruned, and would hold states that nobody wants any more; a key that changed five times
-- while Redis was away needs its last state once. The index is empty while all is well, so looking costs nothing.
CREATE INDEX stream_keys_awaiting_projection ON stream_keys (updated_at) WHERE projected_revision < revision;
