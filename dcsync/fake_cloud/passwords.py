"""Password hashes that look like bcrypt's and carry their own salt, at a millionth of the cost.

A hash that travels from one cloud to another therefore lets the same password in there, as real ones do (K7). These
hashes protect nothing: every password of the fake cloud is made up and printed in its source.
"""

from __future__ import annotations

import base64
import hashlib

_PREFIX = "$2b$04$"
_SALT_CHARS = 22


def hash_password(password: str, *, salt: str) -> str:
    """60 characters in bcrypt's form; the same password and salt give the same hash."""
    salted = _text(hashlib.blake2b(salt.encode(), digest_size=24))[:_SALT_CHARS]
    return _PREFIX + salted + _digest(password, salted)


def matches(password: str, password_hash: str) -> bool:
    """Was this hash made from this password? False for hashes made by anybody else."""
    salted = password_hash[len(_PREFIX) : len(_PREFIX) + _SALT_CHARS]
    return password_hash == _PREFIX + salted + _digest(password, salted)


def _digest(password: str, salted: str) -> str:
    return _text(hashlib.blake2b(f"{salted}:{password}".encode(), digest_size=24))[:31]


def _text(digest: hashlib.blake2b) -> str:
    return base64.b64encode(digest.digest(), altchars=b"./").decode()
