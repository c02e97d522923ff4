-- Persons and organisations that go live. They are never deleted: keys and history name them.
CREATE TABLE broadcasters (
    id           uuid        NOT NULL CONSTRAINT broadcasters_pkey PRIMARY KEY,  -- UUIDv7: sorts by time of creation
    display_name text        NOT NULL,
    contact      text,                                                           -- for administrators only
    metadata     jsonb       NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);
