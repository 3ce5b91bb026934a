"""Runs a module in a process whose wall clock is wrong: `python -m tests.moved_clock -3600 celery -A worker beat`.

The clocks that only count seconds, and those of servers and other processes, stay right.
"""

from __future__ import annotations

import runpy
import sys
from datetime import UTC, datetime, timedelta

import time_machine

if __name__ == "__main__":
    _, ahead, module, *arguments = sys.argv
    time_machine.travel(datetime.now(UTC) + timedelta(seconds=float(ahead)), tick=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
