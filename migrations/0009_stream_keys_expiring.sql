-- A list of those that have expired would be looked for among all.
CREATE INDEX stream_keys_expiring ON stream_keys (expires_at, id) WHERE status = 'active' AND expires_at IS NOT NULL;
