-- What a history of one node is found by.
CREATE INDEX streams_ended_of_node ON streams (node, ended_at, id) WHERE ended_at IS NOT NULL;
