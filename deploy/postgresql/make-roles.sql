-- Run by the image of PostgreSQL when it makes its data folder, with the passwords that compose hands it.
\set ON_ERROR_STOP 1
\set owner_password `cat /run/secrets/postgres_owner_password`
\set app_password `cat /run/secrets/postgres_app_password`
\set reader_password `cat /run/secrets/postgres_reader_password`
\i /etc/dcsync/roles.sql
