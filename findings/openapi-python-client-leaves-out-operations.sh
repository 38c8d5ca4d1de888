#!/bin/sh
# openapi-python-client 0.29.1 and a query parameter with a default, as poem-openapi 5 describes one whose
# type is a named enum: `allOf` of the reference and of `{"default": ...}`. The document is valid OpenAPI 3.0.
# The operation is left out of the client, and the exit code is 0. With `--fail-on-warning` it is 1.
# A document without `allOf` in parameters has all operations in the client.
set -eu
version=0.29.1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "openapi-python-client==$version"

cat > document.json <<'JSON'
{
  "openapi": "3.0.3",
  "info": {"title": "members", "version": "1"},
  "paths": {
    "/members": {"get": {
      "operationId": "listMembers",
      "parameters": [{"name": "state", "in": "query", "schema": {
        "allOf": [{"$ref": "#/components/schemas/State"}, {"default": "current"}]}}],
      "responses": {"200": {"description": "the members"}}}},
    "/groups": {"get": {
      "operationId": "listGroups",
      "parameters": [{"name": "state", "in": "query", "schema": {
        "type": "string", "enum": ["current", "left"], "default": "current"}}],
      "responses": {"200": {"description": "the groups"}}}}
  },
  "components": {"schemas": {"State": {"type": "string", "enum": ["current", "left"]}}}
}
JSON

generate() {
    code=0
    venv/bin/openapi-python-client generate --path document.json --output-path "$1" --meta none $2 \
        > "$1.log" 2>&1 || code=$?
    operations=$(find "$1" -name 'list_*.py' -path '*/api/*' -exec basename {} .py \; | sort | tr '\n' ' ')
}

echo "openapi-python-client $version"
generate plain ""
echo "exit code $code; operations in the client: $operations"
test "$code" = 0
test "$operations" = "list_groups "
generate strict --fail-on-warning
echo "with --fail-on-warning: exit code $code; operations in the client: $operations"
test "$code" = 1
test "$operations" = "list_groups "
