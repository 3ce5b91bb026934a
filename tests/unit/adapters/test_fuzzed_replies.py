"""Whatever a cloud answers: a reader returns what can be compared, stored and sent on, or raises a short CloudError.

The documents are real ones in which some values were replaced by others: arbitrary bytes rarely get past the first
check.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsync.adapters.cloud.dbsync import Dbsync
from dcsync.adapters.cloud.endpoints import CentralEndpoints, central_urls
from dcsync.adapters.cloud.http import Reply, _seconds
from dcsync.adapters.cloud.keystone_api import KeystoneApi
from dcsync.adapters.cloud.prober import _expect_keystone
from dcsync.adapters.cloud.sysinv import SysinvFernetRepo
from dcsync.model.errors import CloudError
from dcsync.model.identity import Placed, Records, ResourceType, fingerprint
from dcsync.model.outside_text import LONGEST_DETAIL
from dcsync.planner.match import Cloud
from dcsync.planner.plan import plan_audit, plan_initial_sync
from dcsync.planner.writes import Update
from tests.integration.adapters.scripted_site import EVENT, GRANT, KEYS, LISTS, USER
from tests.unit.adapters.answers import Answers, run
from tests.unit.adapters.documents import places, replaced

T = TypeVar("T")

CANARY = "canary-in-the-body"
ODD_TEXTS = st.sampled_from(
    [
        "",
        " ",
        "\0",
        "\ud800",
        "admin",
        "Admin",
        "admin ",
        "\u00e9",
        "e\u0301",
        "\u202eadmin",
        "..",
        "../x",
        "a/b",
        "x" * 300,
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ODD_TEXTS | st.text(max_size=10)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXTS, inner, max_size=3), max_leaves=6
)


@st.composite
def almost(draw: st.DrawFn, document: Any) -> Any:
    """The document with up to three values replaced or removed."""
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(places(document)))
        document = replaced(document, place, draw(ANYTHING | st.just(...)))
    return document


def body_of(document: Any) -> bytes:
    return json.dumps(document).encode() + b" " * 3


def refused(error: CloudError | None) -> bool:
    """Whether there was an error; fails for a long one, or one that quotes the body."""
    if error is None:
        return False
    assert len(error.detail) <= LONGEST_DETAIL
    assert CANARY not in repr((error, error.args, error.__cause__))
    return True


def attempted(call: Callable[[], T]) -> tuple[T | None, CloudError | None]:
    try:
        return call(), None
    except CloudError as exc:
        return None, exc


def answered(call: Callable[[Answers], T], document: Any) -> T | None:
    """What the reader returns, or None after a CloudError that is short and quotes nothing of the body."""
    found, error = attempted(lambda: call(Answers(body_of(document))))
    return None if refused(error) else found


def listed(type_: ResourceType) -> Callable[[Answers], Any]:
    return lambda session: run(Dbsync(session, url="http://site").list(type_))  # type: ignore[arg-type]


LISTS_TWICE = {type_: [*LISTS[type_.value], *LISTS[type_.value]] for type_ in ResourceType}
CANARIED_USER = USER | {"password": [{"id": 1, "local_user_id": 1, "password_hash": CANARY}]}


@given(st.data())
def test_what_is_accepted_as_records_can_be_compared_planned_and_sent(data: st.DataObject) -> None:
    found = {
        type_.value: answered(listed(type_), data.draw(almost(LISTS_TWICE[type_]))) or () for type_ in ResourceType
    }
    subcloud = Records(**found)
    central = Records(**{type_.value: listed(type_)(Answers(body_of(LISTS[type_.value]))) for type_ in ResourceType})
    assert len(fingerprint(subcloud)) == 64
    for type_ in ResourceType:
        for record in subcloud.of(type_):
            json.dumps(record.body).encode()
            assert 0 < len(record.id) <= 255
            assert max(map(len, (record.name, record.domain_id))) <= 255
            (record.name + record.domain_id).encode()
    for plan in (
        lambda: plan_initial_sync(central=central, subcloud=subcloud, region_name="r"),
        lambda: plan_audit(central=Cloud(central), subcloud=Cloud(subcloud), region_name="r", placed=Placed()),
    ):
        planned, error = attempted(plan)
        assert refused(error) or planned is not None


@given(almost([CANARIED_USER]))
def test_a_refused_user_is_not_quoted(document: Any) -> None:
    answered(listed(ResourceType.USERS), document)


@given(almost([EVENT, EVENT]))
def test_what_is_accepted_as_events_can_be_stored_and_sent(document: Any) -> None:
    events = answered(lambda it: run(Dbsync(it, url="http://site").revocation_events()), document)  # type: ignore[arg-type]
    for event in events or ():
        json.dumps(event.body).encode()
        assert all("\0" not in (value or "") for value in event.body.values())


@given(almost({"role_assignments": [GRANT, GRANT], "links": {"next": None}, "truncated": False}))
def test_what_is_accepted_as_assignments_has_usable_ids(document: Any) -> None:
    found = answered(lambda it: run(KeystoneApi(it, url="http://site").assignments()), document)  # type: ignore[arg-type]
    for assignment in found or ():
        assert all(id_.isascii() and id_.isprintable() for _, id_ in assignment.ids)


@given(almost({"keys": [{"id": id_, "key": key} for id_, key in KEYS.items()]}))
def test_what_is_accepted_as_keys_can_be_checked_and_shown(document: Any) -> None:
    keys = answered(lambda it: run(SysinvFernetRepo(it, url="http://site").read()), document)  # type: ignore[arg-type]
    if keys is not None:
        assert len("; ".join(keys.problems()) + repr(keys)) < LONGEST_DETAIL
        assert len(keys.fingerprint()) == 64


@given(almost({"version": {"id": "v3.14", "status": "stable", "links": [{"href": CANARY}]}}))
def test_a_probe_ends_with_a_version_document_or_a_short_problem(document: Any) -> None:
    answered(lambda session: _expect_keystone(session.reply), document)


CATALOG = [
    {"type": type_, "endpoints": [{"interface": "internal", "region": "R", "region_id": "R", "url": "http://s"}]}
    for type_ in ("dcorch-dbsync", "platform")
]


@given(almost(CATALOG))
def test_any_catalog_names_urls_or_is_a_bad_reply(document: Any) -> None:
    central = CentralEndpoints(auth="http://a/v3", region="R")
    urls, error = attempted(lambda: central_urls(central, catalog=document))
    if urls is not None:
        assert all(url.startswith(("http://", "https://")) for url in (urls.dbsync, urls.sysinv))
    else:
        assert refused(error)


@given(st.text(max_size=30) | st.integers().map(str) | st.none())
def test_any_retry_after_is_a_pause_of_a_day_at_most_or_none(header: str | None) -> None:
    seconds = _seconds(header)
    assert seconds is None or 0 <= seconds <= 86_400


@given(st.integers(100, 999), st.binary(max_size=50))
def test_any_status_and_body_is_a_reply_or_a_short_error(status: int, body: bytes) -> None:
    reply = Reply("GET http://site/x", status, None, body)
    _, error = attempted(lambda: reply.expect(200).json())
    assert not refused(error) or len(str(error)) < 200


LOOK_ALIKES = [("\u00e9", "e\u0301"), ("Ops", "ops"), ("ops", "ops "), ("\u212b", "\u00c5")]


@pytest.mark.parametrize("names", LOOK_ALIKES)
def test_names_that_only_look_alike_are_different_records(names: tuple[str, str]) -> None:
    """In a normal form, letter case or spaces: PostgreSQL compares names as they are, and so does Keystone with it."""

    def roles(prefix: str) -> Any:
        rows = [{"id": f"{prefix}{number}", "name": name, "domain_id": "<<null>>"} for number, name in enumerate(names)]
        return listed(ResourceType.ROLES)(Answers(body_of([*LISTS["roles"], *({"role": row} for row in rows)])))

    lists = {type_.value: listed(type_)(Answers(body_of(LISTS[type_.value]))) for type_ in ResourceType}
    central, subcloud = (Records(**(lists | {"roles": roles(prefix)})) for prefix in ("central", "subcloud"))
    plan = plan_initial_sync(central=central, subcloud=subcloud, region_name="r")
    updates = [write.action for write in plan.writes if isinstance(write.action, Update)]
    moved = {(update.old.id, update.record.id) for update in updates}
    assert moved >= {("subcloud0", "central0"), ("subcloud1", "central1")}
