"""The schema's history, by alembic. Expand first, contract a release later: the workers of the
release before must run on the schema of this one."""
