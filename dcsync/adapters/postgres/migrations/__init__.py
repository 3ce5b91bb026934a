"""Schema changes, one small step each, run by `dcsync db upgrade` (`dcsync.adapters.postgres.database.upgrade`)."""
