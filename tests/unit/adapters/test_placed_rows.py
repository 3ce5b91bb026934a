"""What dcsync placed on a subcloud, as the rows hold it."""

from __future__ import annotations

from dcsync.adapters.postgres.rows import placed_body, placed_from_body
from dcsync.model.identity import ActorType, Assignment, Placed, ResourceType


def test_what_was_placed_is_read_as_it_was_stored() -> None:
    placed = Placed(
        ids={type_: frozenset({f"{type_}-1", f"{type_}-2"}) for type_ in ResourceType},
        assignments=frozenset({Assignment("p1", ActorType.GROUP, "g1", "r1")}),
    )
    assert placed_from_body(placed_body(placed)) == placed


def test_a_row_stored_before_a_kind_existed_says_that_nothing_of_it_was_placed() -> None:
    placed = placed_from_body({"ids": {"users": ["u1"]}, "assignments": []})
    assert placed.of(ResourceType.USERS) == {"u1"}
    assert placed.of(ResourceType.ROLES) == frozenset()
