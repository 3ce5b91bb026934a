"""How a contract suite says which fake it holds to which ports: `HELD`, read by `tests/unit/test_ports.py`."""

from __future__ import annotations


class Held:
    """A fake that the suite's tests run on, beside the real adapter, and the ports it stands for."""

    def __init__(self, fake: type, *ports: object) -> None:
        self.fake = fake
        self.ports = ports
