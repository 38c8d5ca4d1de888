# The commands of daily work; `make` alone lists them. Plain cargo does the same where PostgreSQL's
# server programs are installed.

.DEFAULT_GOAL := help
.PHONY: help run test check contract compat histories bench bench-reconcile bench-hints soak fuzz postgres curl

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: postgres ## build and start the service; with DATABASE_URL unset on a private Postgres
	cargo run --release

test: FOR_TESTS := yes
test: postgres curl ## run every test, on a throwaway Postgres
	cargo test

check: ## what CI checks before it tests: format, lints, documentation
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

contract: ## check the running service against its OpenAPI document (Python)
	cargo build
	tests/contract/run target/debug/openim-group-mirror

PARTS ?= all
compat: postgres ## run the service in real surroundings, PARTS or all (Debian, Python, Node.js; Go and a JDK for some)
	cargo build --release
	tests/compat/run --write docs/surroundings.md $(PARTS) target/release/openim-group-mirror

N ?= 500
histories: FOR_TESTS := yes
histories: postgres ## compare the mirror with N random histories of each release of OpenIM
	tests/long-histories $(N)

bench: ## measure this service beside other ways to build it, about 15 minutes
	bench/run

bench-reconcile: FOR_TESTS := yes
bench-reconcile: postgres ## measure runs of reconciliation, about 10 minutes
	bench/reconcile

bench-hints: FOR_TESTS := yes
bench-hints: postgres ## measure the time from a hint to the mirror, about 6 minutes
	bench/hints

MINUTES ?= 10
soak: FOR_TESTS := yes
soak: postgres ## cause faults under load for MINUTES, and count what is lost
	bench/soak $(MINUTES)

FUZZ_SECS ?= 60
fuzz: ## search for input that breaks the parsers, FUZZ_SECS for each
	fuzz/run $(FUZZ_SECS)

# For `docker compose up`, and for `make run` just as well. Never over one that is there.
.env: ## write settings with new random keys to .env
	@umask 077; key() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }; \
	sed -e "s/^#\(CALLBACK_PASSWORD=\)$$/\1$$(key)/" -e "s/^#\(API_TOKEN=\)$$/\1$$(key)/" .env.example > .env.new; \
	{ echo; echo "# Of the Postgres in docker-compose.yml, for the service there alone. Letters and digits.";  \
	  echo "POSTGRES_PASSWORD=$$(key)"; } >> .env.new; \
	mv .env.new .env; echo "new keys are in .env"

# Makes sure of PostgreSQL's server programs. The service with a DATABASE_URL needs none. Debian's
# package would make and start a cluster of its own, which nobody asked for: the file tells it not
# to, for as long as this installation takes.
postgres: ## install PostgreSQL's server programs if they are missing
	@if [ -z "$(FOR_TESTS)" ] && { [ -n "$$DATABASE_URL" ] || { [ -z "$${DATABASE_URL+set}" ] && grep -qs '^DATABASE_URL=.' .env; }; }; then exit 0; fi; \
	for dir in "$$PG_BIN_DIR" "$$(sed -n 's/^PG_BIN_DIR=//p' .env 2>/dev/null)" $$(echo "$$PATH" | tr ':' ' ') "$$(pg_config --bindir 2>/dev/null)" \
	    /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql*/bin \
	    /usr/local/opt/postgresql*/bin /home/linuxbrew/.linuxbrew/opt/postgresql*/bin \
	    /Applications/Postgres.app/Contents/Versions/*/bin /opt/local/lib/postgresql*/bin; do \
	    if [ -x "$$dir/initdb" ] && [ -x "$$dir/postgres" ]; then exit 0; fi; \
	done; \
	if ! command -v apt-get >/dev/null; then \
	    echo "PostgreSQL's server programs are missing. Install them, for example with"; \
	    echo "    brew install postgresql        (macOS)"; \
	    echo "    sudo dnf install postgresql-server    (Fedora)"; \
	    echo "or set DATABASE_URL, or PG_BIN_DIR to the folder that has initdb and postgres."; \
	    exit 1; \
	fi; \
	sudo=; if [ "$$(id -u)" != 0 ]; then sudo=sudo; fi; \
	if [ -n "$$sudo" ] && ! command -v sudo >/dev/null; then \
	    echo "PostgreSQL's server programs are missing, and there is no sudo. As root:"; \
	    echo "    apt-get install postgresql"; \
	    exit 1; \
	fi; \
	echo "PostgreSQL's server programs are missing: installing the package postgresql with apt-get."; \
	set -e; \
	conf=/etc/postgresql-common/createcluster.d/openim-group-mirror.conf; \
	$$sudo mkdir -p "$${conf%/*}"; \
	echo 'create_main_cluster = false' | $$sudo tee "$$conf" >/dev/null; \
	trap '$$sudo rm -f "$$conf"' EXIT; trap 'exit 130' INT TERM HUP; \
	$$sudo apt-get update -qq; \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql

# The tests run the commands of the documents.
curl:
	@command -v curl >/dev/null && exit 0; \
	sudo=; if [ "$$(id -u)" != 0 ]; then sudo=sudo; fi; \
	if ! command -v apt-get >/dev/null || { [ -n "$$sudo" ] && ! command -v sudo >/dev/null; }; then \
	    echo "curl is missing; the tests of the documents need it. Install it."; exit 1; \
	fi; \
	echo "curl is missing: installing the package curl with apt-get."; \
	$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends curl
