-- Few keys are, and a list of them would be looked for among all.
CREATE INDEX stream_keys_disabled ON stream_keys (id) WHERE status = 'disabled';
