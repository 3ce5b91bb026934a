-- The roles of dcsync in the current database; psql variables: owner_password, app_password, reader_password.
-- Run it as a superuser, as often as you like: it changes what is there, and passwords.
--
--   dcsync_owner    owns the schema: `dcsync db upgrade`
--   dcsync_app      workers and commands: reads and writes rows, no DDL; history is only added to
--   dcsync_reader   people who only read
--
-- `dcsync db upgrade` grants each the tables.

DO $$
DECLARE
    role text;
    owned regclass;
BEGIN
    FOREACH role IN ARRAY ARRAY['dcsync_owner', 'dcsync_app', 'dcsync_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I', role);
        END IF;
        EXECUTE format('ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS', role);
    END LOOP;
    EXECUTE format('ALTER DATABASE %I OWNER TO dcsync_owner', current_database());
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO dcsync_app, dcsync_reader', current_database());
    -- A schema that another role made, before there were these.
    FOR owned IN
        SELECT c.oid::regclass FROM pg_class AS c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relowner <> 'dcsync_owner'::regrole
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO dcsync_owner', owned);
    END LOOP;
END
$$;
ALTER ROLE dcsync_owner PASSWORD :'owner_password';
ALTER ROLE dcsync_app PASSWORD :'app_password';
ALTER ROLE dcsync_reader PASSWORD :'reader_password';
