"""In which order keys are sent: a cloud writes them one file after another (docs/upstream/http-contracts.md section
4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from dcsync.adapters.cloud.sysinv import SysinvFernetRepo
from dcsync.model.identity import FernetKeys
from dcsync.rotation.key_rotation import rotated
from tests.builders import some_keys

Send = Callable[[SysinvFernetRepo, FernetKeys], Coroutine[Any, Any, None]]


class Recorder:
    """An `Authenticated` that keeps what it is asked to send."""

    body: list[dict[str, Any]]

    async def request(self, method: str, url: str, *, expected: tuple[int, ...], body: Any) -> None:
        self.body = body


def written(before: FernetKeys, rows: list[dict[str, Any]]) -> Iterator[FernetKeys]:
    """What the repository holds after each file, in the order of the array; then what is not in it goes."""
    files = dict(before.keys)
    for row in rows:
        files[row["id"]] = row["key"]
        yield FernetKeys(dict(files))
    yield FernetKeys({row["id"]: row["key"] for row in rows})


def primary(keys: FernetKeys) -> str:
    return keys.keys[max(keys.keys)]


@pytest.mark.parametrize("send", [SysinvFernetRepo.replace, SysinvFernetRepo.put], ids=["POST", "PUT"])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_cloud_takes_all_that_others_issue_after_each_file_of_a_rotated_set(send: Send, size: int) -> None:
    before = some_keys(ids=(0, 1, 2))
    after = rotated(before, staged=some_keys("next").keys[0], max_active_keys=size)
    recorder = Recorder()
    asyncio.run(send(SysinvFernetRepo(recorder, url="http://site/v1"), after))  # type: ignore[arg-type]
    states = list(written(before, recorder.body))
    assert states[-1] == after
    for held in states:
        assert {primary(before), primary(after)} <= set(held.keys.values())
        assert primary(held) in {primary(before), primary(after)}
