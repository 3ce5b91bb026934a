"""Alarm sinks: one log line per alarm, or one JSON POST for several. `dcsync.state.alarms` decides when to deliver."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime

import aiohttp
import structlog
from yarl import URL

from dcsync.model.errors import CloudError, TemporaryError
from dcsync.state.ports import AlarmNotice, NoticesRefused

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


REFUSALS = frozenset({400, 413, 422})
"""Statuses that are about the content of this POST: the same content is refused again, and other content may not be."""


class SinkUnreachable(TemporaryError):
    """The sink did not accept the notices; they are delivered again."""


class LogSink:
    """Logs one line for each alarm raised or cleared."""

    name = "log"

    def send(self, notices: Sequence[AlarmNotice]) -> None:
        for notice in notices:
            (log.warning if notice.cleared_at is None else log.info)("alarm", **notice_as_json(notice))


class WebhookSink:
    """POSTs {"alarms": [...]} to a URL; any 2xx means accepted. Redirects are not followed, the reply is not read.

    `timeout_seconds` is the time limit of the whole POST.
    """

    name = "webhook"

    def __init__(self, url: str, *, context: Callable[[], ssl.SSLContext], timeout_seconds: float = 10.0) -> None:
        self._url = url
        self._context = context
        self._timeout = timeout_seconds

    def send(self, notices: Sequence[AlarmNotice]) -> None:
        """Raises SinkUnreachable or NoticesRefused, which name the failure but not the URL, because it may contain a
        token."""
        body = json.dumps({"version": 1, "alarms": [notice_as_json(notice) for notice in notices]}).encode()
        try:
            status = asyncio.run(self._post(body))
        except (aiohttp.ClientError, OSError, ValueError, CloudError) as error:
            why = type(error).__name__
        else:
            if 200 <= status < 300:
                return
            why = f"status {status}"
            if status in REFUSALS:
                log.warning("the webhook refused what it was sent", alarms=len(notices), why=why)
                raise NoticesRefused(why)
        log.warning("the webhook did not accept alarms, retrying later", waiting=len(notices), why=why)
        raise SinkUnreachable(f"webhook: {why}")

    async def _post(self, body: bytes) -> int:
        async with (
            asyncio.timeout(self._timeout),
            aiohttp.ClientSession(trust_env=False) as session,
            session.post(
                URL(self._url, encoded=self._url.isascii()),
                data=body,
                headers={"Content-Type": "application/json", "User-Agent": "dcsync"},
                ssl=self._context() if self._url.startswith("https:") else True,
                allow_redirects=False,
            ) as answer,
        ):
            return answer.status


def notice_as_json(notice: AlarmNotice) -> dict[str, str | None]:
    """Returns an alarm as JSON values; `cleared_at` is null while it is active."""
    return {
        "alarm_id": notice.alarm_id,
        "entity": notice.entity,
        "severity": notice.severity,
        "reason_text": notice.reason_text,
        "raised_at": _text(notice.raised_at),
        "cleared_at": _text(notice.cleared_at),
    }


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
