#!/bin/sh
# Start the broker. Its password goes from the environment into a file of mode 600, and onto no
# command line. It holds wake-ups only, so nothing is kept on disk.
set -eu
umask 077
config="${TMPDIR:-/tmp}/valkey.conf"
cat >"$config" <<END
port ${VALKEY_PORT:-6379}
requirepass $VALKEY_PASSWORD
save ""
appendonly no
maxmemory-policy noeviction
END
exec valkey-server "$config"
