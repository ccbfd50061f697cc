#!/bin/sh
# Start the object store. Its keys go from the environment into a file of mode 600, and onto no
# command line. Only the S3 port listens outside: the filer's has no authentication at all.
set -eu
umask 077
config="${TMPDIR:-/tmp}/s3.json"
cat >"$config" <<END
{"identities": [{
  "name": "manylora",
  "credentials": [{"accessKey": "$S3_ACCESS_KEY", "secretKey": "$S3_SECRET_KEY"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]
}]}
END
exec weed -logtostderr=true server \
  -dir="${SEAWEED_DATA:-/data}" \
  -ip=127.0.0.1 -ip.bind=127.0.0.1 \
  -master.telemetry=false -master.electionTimeout=1s -master.volumeSizeLimitMB=1024 \
  -volume.max=0 -volume.preStopSeconds=0 \
  -filer \
  -s3 -s3.ip.bind=0.0.0.0 -s3.port="${S3_PORT:-8333}" -s3.config="$config" \
  -s3.port.iceberg=0 -s3.port.lance=0 "$@"
