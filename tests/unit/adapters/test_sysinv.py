"""In which order keys are sent (a cloud writes them one file after another, docs/upstream/http-contracts.md section 4),
and how a repository is read."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.adapters.cloud.http import Reply
from dcsync.adapters.cloud.sysinv import SysinvFernetRepo
from dcsync.model.errors import CloudError
from dcsync.model.identity import FernetKeys
from dcsync.model.reasons import Reason
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


class Repository:
    """An `Authenticated` whose sysinv returns these files of a key repository."""

    def __init__(self, *files: tuple[Any, Any]) -> None:
        self.body = json.dumps({"keys": [{"id": key_id, "key": text} for key_id, text in files]}).encode()

    async def request(self, method: str, url: str, *, expected: tuple[int, ...]) -> Reply:
        return Reply(f"{method} {url}", 200, None, self.body)


def read(*files: tuple[Any, Any]) -> FernetKeys:
    return asyncio.run(SysinvFernetRepo(Repository(*files), url="http://site/v1").read())  # type: ignore[arg-type]


def as_keystone(text: str) -> bytes | None:
    """What cryptography's Fernet makes of the text of a key file: its 32 bytes, or none."""
    try:
        decoded = base64.urlsafe_b64decode(text)
    except ValueError:
        return None
    return decoded if len(decoded) == 32 else None


ZERO, ONE, TWO = some_keys().keys.values()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", " ", "\t", "\0"])
def test_a_key_whose_file_ends_in_a_line_break_is_the_same_key(end: str) -> None:
    keys = read((0, ZERO), (1, ONE + end), (2, TWO))
    assert keys.fingerprint() == some_keys().fingerprint()
    assert keys.problems() == []


def test_an_empty_file_is_no_key_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert read((0, ""), (1, ONE), (2, TWO)).keys == {1: ONE, 2: TWO}
    assert "1 empty keys ignored" in caplog.text


@pytest.mark.parametrize("text", ["\n", "x", ZERO[:-4], "!" * 44])
def test_a_file_in_which_keystone_finds_no_key_is_a_problem(text: str) -> None:
    assert read((0, ZERO), (1, text)).problems() == ["key 1 is not 32 bytes of url-safe base64"]


@given(st.text(alphabet=st.characters(max_codepoint=127), min_size=1, max_size=100) | st.just(ZERO + "\n"))
def test_a_key_is_valid_exactly_where_keystone_can_use_it(text: str) -> None:
    keys = read((0, text))
    assert (keys.problems() == []) is (as_keystone(text) is not None)
    assert as_keystone(keys.keys[0]) == as_keystone(text)


@pytest.mark.parametrize(
    "files",
    [[(0, "k" * 256)], [(2**31, ZERO)], [(-(2**31), ZERO)], [(key_id, ZERO) for key_id in range(1001)]],
    ids=["long", "large id", "negative id", "many"],
)
def test_more_than_any_repository_holds_is_a_bad_reply_without_a_list(files: list[tuple[int, str]]) -> None:
    with pytest.raises(CloudError) as caught:
        read(*files)
    assert caught.value.reason is Reason.BAD_REPLY
    assert len(str(caught.value)) < 200


def test_many_ids_are_counted_where_they_are_shown() -> None:
    keys = FernetKeys(dict.fromkeys(range(600000), "k"))
    assert len(repr(keys)) < 200
    assert "599990 more" in repr(keys)
    assert len("; ".join(keys.problems())) < 1000
