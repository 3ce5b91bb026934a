"""Where alarms are told: a log line each, or one JSON POST for several. When and to whom is `dcsync.state.alarms`."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import structlog

from dcsync.errors import TemporaryError
from dcsync.ports import AlarmNotice

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


class SinkUnreachable(TemporaryError):
    """The sink did not take the notices; they are told again."""


class LogSink:
    """Each alarm raised or cleared is a line of the log."""

    name = "log"

    def tell(self, notices: Sequence[AlarmNotice]) -> None:
        for notice in notices:
            (log.warning if notice.cleared_at is None else log.info)("alarm", **notice_as_json(notice))


class WebhookSink:
    """POSTs {"alarms": [...]} to a URL; any 2xx means taken. Redirects are not followed, the body is not read."""

    name = "webhook"

    def __init__(self, url: str, *, context: Callable[[], ssl.SSLContext], timeout_seconds: float = 10.0) -> None:
        self._url = url
        self._context = context
        self._timeout = timeout_seconds

    def tell(self, notices: Sequence[AlarmNotice]) -> None:
        """Raises SinkUnreachable, which names the kind of failure and never the URL, for that may hold a token."""
        body = json.dumps({"version": 1, "alarms": [notice_as_json(notice) for notice in notices]}).encode()
        request = urllib.request.Request(  # noqa: S310 - settings allow http and https only
            self._url, data=body, headers={"Content-Type": "application/json", "User-Agent": "dcsync"}, method="POST"
        )
        try:
            with self._opener().open(request, timeout=self._timeout) as answer:
                status = answer.status
        except urllib.error.HTTPError as error:
            status = error.code
            error.close()
        except (OSError, http.client.HTTPException) as error:
            raise SinkUnreachable(f"webhook: {type(error).__name__}") from error
        if not 200 <= status < 300:
            raise SinkUnreachable(f"webhook: status {status}")

    def _opener(self) -> urllib.request.OpenerDirector:
        https = urllib.request.HTTPSHandler(context=self._context())
        return urllib.request.build_opener(urllib.request.ProxyHandler({}), https, _NoRedirect)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """A redirect is an answer, and not a good one."""


def notice_as_json(notice: AlarmNotice) -> dict[str, str | None]:
    """An alarm for programs: `cleared_at` null while it is active."""
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
