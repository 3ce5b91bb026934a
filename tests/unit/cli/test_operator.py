"""What a command is handed."""

from __future__ import annotations

from dcsync import settings
from dcsync.cli.operator import ANSWER_SECONDS, Operator
from tests.unit.cli.conftest import ENVIRON


def test_a_command_waits_for_a_hanging_broker_less_long_than_a_worker() -> None:
    """It said 31 s nothing, for a hint that only saves the next sweep's wait."""
    operator = Operator()
    operator.settings = settings.load(ENVIRON)
    try:
        assert operator.celery.conf.broker_transport_options["socket_timeout"] == ANSWER_SECONDS
    finally:
        operator.close()
