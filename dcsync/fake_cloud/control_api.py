"""The control API: HTTP under /control at the central address, with which tests and the demo steer the fake cloud.

GET  /control/subclouds            their names and addresses
GET  /control/state/{region}       state of one, with its counters and newest requests
GET  /control/report               the sum over all
POST /control/faults               {"region_name", "faults": [...]}; an empty list clears
POST /control/change               {"region_name", "action", "arguments": {...}}
POST /control/latency              {"seconds"}: of every subcloud
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections import Counter
from typing import Any

from dcsync.fake_cloud import changes
from dcsync.fake_cloud.faults import Fault
from dcsync.fake_cloud.server import Site, World
from dcsync.fake_cloud.wire import Request, Response, json_response

_BREATHER = 50
"""After so many comparisons other requests get their turn."""
_NAMED_PROBLEMS = 20


async def answer(world: World, request: Request) -> Response:
    """Carries out one request; 400 with a text when it cannot be understood."""
    try:
        return json_response(200, await _carry_out(world, request))
    except (KeyError, TypeError, ValueError, OSError) as exc:
        return json_response(400, {"error": f"{exc.__class__.__name__}: {exc}"})


async def _carry_out(world: World, request: Request) -> Any:
    match (request.verb, request.path.split("/")[2:]):
        case ("GET", ["subclouds"]):
            return [_place(site) for site in world.sites.values()]
        case ("GET", ["state", "central"]):
            return _counters(world, world.central_site)
        case ("GET", ["state", region_name]):
            return _state(world, world.sites[region_name])
        case ("GET", ["report"]):
            return await _report(world)
        case ("POST", ["faults"]):
            return await _set_faults(world, json.loads(request.body))
        case ("POST", ["change"]):
            return _change(world, json.loads(request.body))
        case ("POST", ["latency"]):
            world.latency = float(json.loads(request.body)["seconds"])
            return {}
    raise ValueError(f"no such request: {request.verb} {request.path}")


def _place(site: Site) -> dict[str, str]:
    return {
        "name": site.cloud.region_name, "region_name": site.cloud.region_name,
        "management_ip": site.cloud.management_ip, "software_version": "24.09",
    }  # fmt: skip


async def _set_faults(world: World, body: dict[str, Any]) -> dict[str, Any]:
    faults = tuple(Fault(**fault) for fault in body["faults"])
    sites = world.chosen(body["region_name"])
    if world.central_site in sites and any(fault.kind == "refuse" for fault in faults):
        raise ValueError("the central cloud answers this API itself, so it cannot refuse; use reset")
    for site in sites:
        await site.set_faults(faults)
    return {"sites": len(sites)}


def _change(world: World, body: dict[str, Any]) -> dict[str, Any]:
    for site in world.chosen(body["region_name"]):
        changes.apply(site.cloud, body["action"], body.get("arguments", {}))
    return {}


def _counters(world: World, site: Site) -> dict[str, Any]:
    ledger = site.ledger
    recent = [
        {"at": at, "verb": verb, "path": path, "request_id": request_id, "status": status}
        for at, verb, path, request_id, status in ledger.recent
    ]
    return _place(site) | {
        "requests": dict(ledger.requests),
        "carried_out": dict(ledger.carried_out),
        "recent": recent,
        "violations": world.watchman.violations(site.cloud.region_name),
        "described": world.watchman.descriptions(site.cloud.region_name),
    }


def _state(world: World, site: Site) -> dict[str, Any]:
    standing = site.standing()
    return _counters(world, site) | {
        "aligned": standing.aligned,
        "keys_match": standing.keys_match,
        "untouched": standing.untouched,
        "assignments_kept": standing.assignments_kept,
        "good": standing.is_good,
        "problems": list(standing.problems),
        "audited": standing.audited,
        "differences": list(standing.differences),
    }


async def _report(world: World) -> dict[str, Any]:
    sums: Counter[str] = Counter()
    problems: dict[str, list[str]] = {}
    differences: dict[str, list[str]] = {}
    requests: Counter[str] = Counter(world.central_site.ledger.requests)
    carried_out: Counter[str] = Counter()
    for number, site in enumerate(world.sites.values(), start=1):
        if number % _BREATHER == 0:
            await asyncio.sleep(0)
        standing = site.standing()
        for name in ("aligned", "keys_match", "untouched", "assignments_kept", "is_good", "audited"):
            sums[name] += getattr(standing, name)
        if standing.problems and len(problems) < _NAMED_PROBLEMS:
            problems[site.cloud.region_name] = list(standing.problems)
        if standing.differences and len(differences) < _NAMED_PROBLEMS:
            differences[site.cloud.region_name] = list(standing.differences)
        requests.update(site.ledger.requests)
        carried_out.update(site.ledger.carried_out)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    violations = world.watchman.violations()
    return {
        "subclouds": len(world.sites),
        "aligned": sums["aligned"],
        "keys_match": sums["keys_match"],
        "untouched": sums["untouched"],
        "assignments_kept": sums["assignments_kept"],
        "good": sums["is_good"],
        "problems": problems,
        "audited": sums["audited"],
        "differences": differences,
        "violations": violations,
        "violation_count": sum(violations.values()),
        "described": world.watchman.descriptions(),
        "requests": dict(requests),
        "request_count": world.served,
        "created": sum(count for what, count in carried_out.items() if what.startswith("POST dbsync")),
        "deleted": sum(count for what, count in carried_out.items() if what.startswith("DELETE keystone")),
        "cpu_seconds": time.process_time(),
        "peak_memory_bytes": usage.ru_maxrss * 1024,
    }
