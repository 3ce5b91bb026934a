"""`python -m dcsync.fake_cloud --subclouds N`: runs until it is stopped, or until its parent ends."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import sys

from dcsync.fake_cloud import control_api
from dcsync.fake_cloud.server import CENTRAL_IP, World

_PARENT_CHECK_SECONDS = 1.0


def _arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dcsync.fake_cloud", description=__doc__)
    parser.add_argument("--subclouds", type=int, default=20, help="how many (default 20, at most 5000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other ids, hashes and keys")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="of every request to a subcloud")
    parser.add_argument(
        "--unaligned", default="", metavar="NAME,...", help="subclouds whose service ids were not aligned at deployment"
    )
    parser.add_argument("--end-with-stdin", action="store_true", help="stop when standard input closes")
    parser.add_argument("--parent", type=int, metavar="PID", help="stop when this is no longer the parent")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.subclouds <= 5000:
        parser.error("--subclouds must be between 0 and 5000")
    return arguments


async def _serve(arguments: argparse.Namespace) -> None:
    unaligned = [name for name in arguments.unaligned.split(",") if name]
    world = World(
        subclouds=arguments.subclouds,
        control=control_api.answer,
        seed=arguments.seed,
        latency=arguments.latency,
        unaligned=unaligned,
    )
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if arguments.end_with_stdin:
        loop.add_reader(sys.stdin.fileno(), _read_stdin, stopped)
    await world.start()
    gc.freeze()
    address = {"port": world.port, "central_ip": CENTRAL_IP}
    ready = address | {"control_url": f"http://{CENTRAL_IP}:{world.port}/control"}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    while not stopped.is_set():
        if arguments.parent is not None and os.getppid() != arguments.parent:
            break
        try:
            await asyncio.wait_for(stopped.wait(), _PARENT_CHECK_SECONDS)
        except TimeoutError:
            continue
    world.stop()


def _read_stdin(stopped: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stopped.set()


def main() -> None:
    arguments = _arguments()
    gc.set_threshold(50_000, 20, 100)
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(arguments))
    else:
        uvloop.run(_serve(arguments))


if __name__ == "__main__":
    main()
