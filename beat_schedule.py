"""What beat sends, and how often: the schedule of `dcsync.beat_schedule`, from the root of the repository."""

from dcsync.beat_schedule import beat_schedule

__all__ = ["beat_schedule"]
