-- Whether a node was removed: src/rebuild/fleet.rs asks as long as Redis has a node that Postgres lacks.
CREATE INDEX audit_log_of_node ON audit_log (node, id) WHERE node IS NOT NULL;
