-- What a rebuild of Redis has to stay above: the newest epoch that was ever given out.
CREATE INDEX streams_epoch ON streams (epoch);
