"""Whatever the order, the doubling and the batching in which reports are delivered, the same rows come out.

The model is a different algorithm: it keeps every report, sorts them by the time of observation, and plays them in
that order through the acceptance table of docs/upstream/state-service.md section 3.3, word by word.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dcsync.model.reports import AvailabilityReport, EndpointReport, Report
from dcsync.model.states.initial_sync import InitialSyncState
from dcsync.model.subcloud import DEFAULT_ENDPOINT_TYPES, AvailabilityStatus, EndpointType, ManagementState, SyncStatus
from dcsync.state import memory, rules
from dcsync.state.ports import EndpointRow
from dcsync.state.service import StateService
from tests.fake_messenger import FakeMessenger
from tests.fake_states import FakeStateStore
from tests.reports import (
    DC_CERT,
    FIRMWARE,
    IDENTITY,
    IN_SYNC,
    MANAGED,
    NOW,
    OFFLINE,
    ONLINE,
    OUT_OF_SYNC,
    PLATFORM,
    SEVEN_TYPES,
    UNKNOWN,
    UNMANAGED,
    a_state_row,
    bulk,
    endpoint,
    fails,
    offline,
    online,
)


class Model:
    """The reports in the order of their observation, played through the acceptance table."""

    def __init__(
        self,
        management_state: ManagementState,
        reports: Iterable[Report],
        *,
        types: Iterable[EndpointType] = SEVEN_TYPES,
    ) -> None:
        self.management_state = management_state
        self.availability: AvailabilityStatus = OFFLINE
        self.has_been_online = False
        self.fail_count = 0
        self.statuses: dict[EndpointType, tuple[SyncStatus, bool]] = dict.fromkeys(types, (UNKNOWN, True))
        for report in sorted(reports, key=lambda report: report.mark):
            self._play(report)

    def _play(self, report: Any) -> None:
        if isinstance(report, AvailabilityReport):
            if report.fail_count is not None:
                self.fail_count = report.fail_count
            elif report.availability_status is ONLINE:
                self.fail_count = 0
            if report.availability_status is not None:
                self.availability = report.availability_status
                self.has_been_online |= report.availability_status is ONLINE
            if report.availability_status is OFFLINE:
                self.statuses = dict.fromkeys(self.statuses, (UNKNOWN, True))
        elif isinstance(report, EndpointReport):
            if report.endpoint_type and self._may_have(report):
                self.statuses.setdefault(report.endpoint_type, (UNKNOWN, True))
            if not self._accepts(report):
                return
            chosen = [report.endpoint_type] if report.endpoint_type else set(self.statuses) - report.ignored
            for type_ in chosen:
                alarmable = report.alarmable or report.sync_status is not OUT_OF_SYNC
                self.statuses[type_] = (report.sync_status, alarmable)
        else:
            for part in [report.availability] if report.availability else []:
                self._play(part)
            for part in report.endpoints:
                self._play(part)

    def _may_have(self, report: EndpointReport) -> bool:
        """Whether the first report of an endpoint makes it appear."""
        is_managed = self.management_state is MANAGED or report.endpoint_type is DC_CERT
        return is_managed or report.sync_status is UNKNOWN

    def _accepts(self, report: EndpointReport) -> bool:
        match (report.sync_status, self.availability, self.management_state, report.endpoint_type):
            case (SyncStatus.UNKNOWN, _, _, _):
                return True
            case (_, AvailabilityStatus.ONLINE, ManagementState.MANAGED, _):
                return True
            case (_, AvailabilityStatus.ONLINE, ManagementState.UNMANAGED, EndpointType.DC_CERT):
                return True
        return False

    def alarms(self) -> set[tuple[str, str]]:
        raised = {
            ("280.002", str(type_))
            for type_, (status, alarmable) in self.statuses.items()
            if status is OUT_OF_SYNC and alarmable
        }
        missed = self.has_been_online and self.availability is OFFLINE
        return raised | ({("280.001", "")} if missed else set())


def assert_as_modelled(store: FakeStateStore, model: Model) -> None:
    row = store.rows["subcloud1"]
    assert row.availability_status is model.availability
    assert row.fail_count == model.fail_count
    shown = {type_: (each.sync_status, each.alarmable) for type_, each in row.endpoints.items()}
    assert shown == model.statuses
    assert store.alarms() == model.alarms()
    facts = memory.facts_of(row, now=NOW)
    assert {(a.alarm_id.value, a.endpoint_type or "") for a in rules.expected_alarms(facts)} == model.alarms()
    eligible = row.management_state is MANAGED and model.availability is ONLINE
    assert row.initial_sync_state is (InitialSyncState.REQUESTED if eligible else InitialSyncState.NONE)


def deliver(batches: Iterable[Sequence[Report]], **row: Any) -> FakeStateStore:
    store = FakeStateStore(a_state_row(**row))
    service = StateService(store=store, messenger=FakeMessenger(), now=lambda: NOW)
    for batch in batches:
        assert service.apply(batch).rejected == 0
    return store


ENDPOINTS = st.sampled_from([PLATFORM, IDENTITY, DC_CERT])
STATUSES = st.sampled_from([UNKNOWN, IN_SYNC, OUT_OF_SYNC])


def reports_at(second: float) -> st.SearchStrategy[Report]:
    """Some report about the subcloud, observed then."""
    return st.one_of(
        reports_by_name_at(second, ENDPOINTS),
        st.builds(
            lambda status, ignored: endpoint(second, None, status, ignored=ignored),
            STATUSES,
            st.frozensets(ENDPOINTS),
        ),
    )


def reports_by_name_at(second: float, endpoints: st.SearchStrategy[EndpointType]) -> st.SearchStrategy[Report]:
    """One that names each endpoint it is about."""
    more = st.fixed_dictionaries({"alarmable": st.booleans()})
    return st.one_of(
        st.builds(online, st.just(second), fail_count=st.none() | st.integers(0, 3)),
        st.builds(offline, st.just(second), fail_count=st.none() | st.integers(0, 3)),
        st.builds(fails, st.just(second), st.integers(0, 3)),
        st.builds(lambda type_, status, more: endpoint(second, type_, status, **more), endpoints, STATUSES, more),
        st.builds(
            lambda statuses, availability: bulk(second, statuses, availability_status=availability),
            st.dictionaries(endpoints, STATUSES, min_size=1),
            st.sampled_from([None, ONLINE, OFFLINE]),
        ),
    )


FIVE = st.tuples(*(reports_at(second) for second in range(1, 6)))


@given(reports=FIVE, management_state=st.sampled_from([MANAGED, UNMANAGED]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_permutation_of_five_reports_ends_in_the_same_row(
    reports: tuple[Report, ...], management_state: ManagementState
) -> None:
    model = Model(management_state, reports)
    for order in itertools.permutations(reports):
        assert_as_modelled(deliver(([each] for each in order), management_state=management_state), model)


NOT_CONFIGURED = st.sampled_from([IDENTITY, DC_CERT, FIRMWARE])


@given(
    reports=st.tuples(*(reports_by_name_at(second, NOT_CONFIGURED) for second in range(1, 5))),
    management_state=st.sampled_from([MANAGED, UNMANAGED]),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_endpoints_that_appear_with_their_first_report_are_the_same_in_every_order(
    reports: tuple[Report, ...], management_state: ManagementState
) -> None:
    """Those that name their endpoints: one on all endpoints concerns those that are there when it arrives."""
    row = {
        "management_state": management_state,
        "endpoints": {type_: EndpointRow(UNKNOWN, True, None) for type_ in DEFAULT_ENDPOINT_TYPES},
    }
    model = Model(management_state, reports, types=DEFAULT_ENDPOINT_TYPES)
    for order in itertools.permutations(reports):
        assert_as_modelled(deliver(([each] for each in order), **row), model)


@given(
    reports=FIVE,
    order=st.permutations(range(5)),
    cuts=st.lists(st.integers(1, 5), max_size=3),
    again=st.lists(st.integers(0, 4), max_size=5),
)
@settings(max_examples=200, deadline=None)
def test_batching_and_doubling_make_no_difference(
    reports: tuple[Report, ...], order: list[int], cuts: list[int], again: list[int]
) -> None:
    delivered = [reports[index] for index in [*order, *again]]
    edges = sorted({0, *cuts, len(delivered)})
    batches = [delivered[start:end] for start, end in itertools.pairwise(edges)]
    assert_as_modelled(deliver(batches), Model(MANAGED, reports))


class Deliveries(RuleBasedStateMachine):
    """Reports are observed in time, and delivered at any moment, once or more often."""

    @initialize(management_state=st.sampled_from([MANAGED, UNMANAGED]))
    def add(self, management_state: ManagementState) -> None:
        self.store = FakeStateStore(a_state_row(management_state=management_state))
        self.service = StateService(store=self.store, messenger=FakeMessenger(), now=lambda: NOW)
        self.management_state = management_state
        self.clock = 0
        self.undelivered: list[Report] = []
        self.delivered: list[Report] = []

    @rule(data=st.data())
    def observe(self, data: st.DataObject) -> None:
        self.clock += 1
        self.undelivered.append(data.draw(reports_at(self.clock)))

    @rule(data=st.data())
    def deliver_some(self, data: st.DataObject) -> None:
        if not self.undelivered:
            return
        count = data.draw(st.integers(1, len(self.undelivered)))
        batch = [self.undelivered.pop(data.draw(st.integers(0, len(self.undelivered) - 1))) for _ in range(count)]
        self._deliver(batch)

    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        if self.delivered:
            before = self.store.writes
            self._deliver([data.draw(st.sampled_from(self.delivered))])
            assert self.store.writes == before, "what was applied already is written again"

    def _deliver(self, batch: list[Report]) -> None:
        self.service.apply(batch)
        self.delivered += batch

    @invariant()
    def rows_are_as_if_all_had_come_in_order(self) -> None:
        online_reports = [r for r in self.delivered if "online" in repr(r)]
        if len(online_reports) <= rules.ONLINE_MARKS_KEPT:
            assert_as_modelled(self.store, Model(self.management_state, self.delivered))


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
