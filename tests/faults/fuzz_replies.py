"""Feeds bytes that atheris makes up, guided by coverage, to every reader of replies; ends with an error for a fault.

`python -m tests.faults.fuzz_replies -max_total_time=20`; options are libFuzzer's. The seeds are real documents.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["dcsync.adapters.cloud", "dcsync.model", "json"]):
    from dcsync.adapters.cloud.dbsync import Dbsync
    from dcsync.adapters.cloud.endpoints import CentralEndpoints, central_urls
    from dcsync.adapters.cloud.http import Reply
    from dcsync.adapters.cloud.keystone_api import KeystoneApi
    from dcsync.adapters.cloud.sysinv import SysinvFernetRepo
    from dcsync.model.addresses import check_address
    from dcsync.model.errors import BadAddress, BadReport, CloudError
    from dcsync.model.identity import ResourceType
    from dcsync.model.report_payloads import report_from_payload

import contextlib

from tests.integration.adapters.scripted_site import EVENT, GRANT, KEYS, LISTS
from tests.unit.adapters.answers import Answers
from tests.unit.adapters.documents import places, replaced

REPORT = {"kind": "bulk", "region_name": "a", "observed_at": "2026-01-31T12:00:00+00:00", "sequence": 1}
SEEDS: list[Any] = [
    *LISTS.values(),
    [EVENT],
    {"role_assignments": [GRANT], "truncated": False},
    {"keys": [{"id": id_, "key": key} for id_, key in KEYS.items()]},
    [
        {"type": type_, "endpoints": [{"interface": "internal", "region": "R", "url": "http://a"}]}
        for type_ in ("dcorch-dbsync", "platform")
    ],
    {**REPORT, "endpoints": {"platform": "in-sync"}},
    "64:ff9b:1::127.0.0.1",
]

Read = Callable[[Answers], Coroutine[Any, Any, Any]]
READERS: list[Read] = [
    *(lambda session, type_=type_: Dbsync(session, url="http://s").list(type_) for type_ in ResourceType),  # type: ignore[misc]
    lambda session: Dbsync(session, url="http://s").revocation_events(),  # type: ignore[arg-type]
    lambda session: KeystoneApi(session, url="http://s").assignments(),  # type: ignore[arg-type]
    lambda session: SysinvFernetRepo(session, url="http://s").read(),  # type: ignore[arg-type]
]
CENTRAL = CentralEndpoints(auth="http://a/v3", region="R")

_loop = asyncio.new_event_loop()


ODD: list[Any] = [..., None, True, -1, 2**70, 1e308, "", "\0", "\ud800", "x" * 300, [], {}, [[]], [{}], {"id": []}]


def read_all(given: bytes) -> None:
    """Reads the bytes themselves, and documents in which they choose places and other values."""
    read_body(given)
    chosen = atheris.FuzzedDataProvider(given)
    document = chosen.PickValueInList(SEEDS)
    for _ in range(chosen.ConsumeIntInRange(1, 3)):
        place = chosen.PickValueInList(places(document))
        document = replaced(document, place, chosen.PickValueInList([*ODD, chosen.ConsumeUnicode(8)]))
    read_body(json.dumps(document).encode())


def read_body(body: bytes) -> None:
    """Gives the bytes to every reader; only the errors they promise are caught."""
    for read in READERS:
        with contextlib.suppress(CloudError):
            _loop.run_until_complete(read(Answers(body)))
    try:
        value = Reply("GET http://s", 200, None, body).json()
        central_urls(CENTRAL, catalog=value)
    except CloudError:
        return
    finally:
        _address(body.decode(errors="replace"))
    with contextlib.suppress(BadReport):
        report_from_payload(value)


def _address(text: str) -> None:
    with contextlib.suppress(BadAddress):
        check_address(text, allowed_networks=())


def main() -> None:
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS):
            (Path(corpus) / str(number)).write_text(json.dumps(seed), encoding="utf-8")
        atheris.Setup([*sys.argv, corpus], read_all)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
