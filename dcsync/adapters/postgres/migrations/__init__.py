"""Schema migrations, one small step each, run by `dcsync db upgrade` (`dcsync.adapters.postgres.database.upgrade`)."""
