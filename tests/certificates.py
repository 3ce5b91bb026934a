"""Certificates for tests, made with the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """A CA of the test's own, in a folder of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.certificate, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        self._openssl("req", "-x509", *self._new_key(self.key), "-days", "2", "-subj", f"/CN={name}",
                      "-out", self.certificate)  # fmt: skip

    def sign(self, address: str, *, days: int = 2) -> Path:
        """A certificate for an IP address, with its key, in one file; with negative `days` it has expired."""
        name = f"{self.name}-{address}-{days}"
        key, request, certificate = (self.folder / f"{name}.{kind}" for kind in ("key", "csr", "crt"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=IP:{address}\n")
        self._openssl("req", "-new", *self._new_key(key), "-subj", "/CN=site", "-out", request)
        self._openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-days", days,
                      "-set_serial", "1", "-extfile", extensions, "-out", certificate)  # fmt: skip
        both = self.folder / f"{name}.both"
        both.write_bytes(certificate.read_bytes() + key.read_bytes())
        return both

    @staticmethod
    def _new_key(path: Path) -> tuple[object, ...]:
        return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path

    @staticmethod
    def _openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
