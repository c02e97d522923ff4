-- What is asked for rarely, and would be looked for in the whole table: the history of one node, keys that are disabled or have expired,
-- and whether a node was removed.
CREATE INDEX streams_ended_of_node ON streams (node, ended_at, id) WHERE ended_at IS NOT NULL;
CREATE INDEX stream_keys_disabled ON stream_keys (id) WHERE status = 'disabled';
CREATE INDEX stream_keys_expiring ON stream_keys (expires_at, id) WHERE status = 'active' AND expires_at IS NOT NULL;
CREATE INDEX audit_log_of_node ON audit_log (node, id) WHERE node IS NOT NULL;
