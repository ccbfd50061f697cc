"""The embedded stack: real PostgreSQL, Valkey and SeaweedFS as child processes, from wheels."""
