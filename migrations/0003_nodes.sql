-- The MediaMTX servers of the fleet. No secret: a node's password is derived from its name.
CREATE TABLE nodes (
    name        text        NOT NULL CONSTRAINT nodes_pkey PRIMARY KEY,
    control_url text        NOT NULL,
    public_urls jsonb       NOT NULL,  -- protocol -> base URL
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
