-- The history: every stream, from its admission on, as far as the event log in Redis has been written.
--
-- Nothing here may ever refuse an event, for a refused event would hold up those behind it. So there is no foreign key
-- to keys, broadcasters and nodes (a node may be gone, a database may have been restored to an older state), no
-- constraint on words that a newer replica may know, and no "one open stream a path": Redis decides that, and its word
-- is only written down.
CREATE TABLE streams (
    id             uuid        NOT NULL CONSTRAINT streams_pkey PRIMARY KEY,
    path           text        NOT NULL,
    epoch          bigint      NOT NULL,  -- orders the streams of the path
    revision       bigint      NOT NULL,  -- orders the states of this stream; a lower one never overwrites a higher one
    key_id         uuid        NOT NULL,
    broadcaster_id uuid        NOT NULL,
    node           text        NOT NULL,
    source_id      uuid        NOT NULL,
    source_type    text,                  -- unknown until the first hook or poll
    protocol       text        NOT NULL,
    address        text        NOT NULL,
    user_agent     text        NOT NULL,
    state          text        NOT NULL,  -- connecting, live, ended
    admitted_at    timestamptz NOT NULL,
    deadline_at    timestamptz,           -- of a connecting stream: when it ends unless it comes online
    key_expires_at timestamptz,
    live_at        timestamptz,           -- first seen online
    ended_at       timestamptz,
    end_reason     text,
    info           jsonb       NOT NULL,  -- title, description, broadcaster's name, metadata, recording
    tracks         jsonb       NOT NULL,
    playback       text        NOT NULL,
    inbound_bytes  bigint,                -- this and the next two: as the node told last, where it ever did
    outbound_bytes bigint,
    viewers_peak   bigint
);

-- Pages of the history go back in time by (ended_at, id), whole or of one key, broadcaster or path.
CREATE INDEX streams_ended ON streams (ended_at, id) WHERE ended_at IS NOT NULL;
CREATE INDEX streams_ended_of_key ON streams (key_id, ended_at, id) WHERE ended_at IS NOT NULL;
CREATE INDEX streams_ended_of_broadcaster ON streams (broadcaster_id, ended_at, id) WHERE ended_at IS NOT NULL;
CREATE INDEX streams_ended_of_path ON streams (path, ended_at, id) WHERE ended_at IS NOT NULL;

-- What has to be on air again in a Redis that lost its memory.
CREATE INDEX streams_open ON streams (path, id) WHERE ended_at IS NULL;
