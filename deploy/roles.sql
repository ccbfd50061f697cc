-- The ledger's two roles and its database, made once, on an empty server, by its superuser.
-- The owner changes the schema; the app role reads and writes rows and nothing else.
-- The passwords come from the environment: psql reads them, and no command line shows them.
\set ON_ERROR_STOP on
\getenv owner_password OWNER_PASSWORD
\getenv app_password APP_PASSWORD

CREATE ROLE manylora_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE manylora_app LOGIN PASSWORD :'app_password';
CREATE DATABASE manylora OWNER manylora_owner;
