"""Tokens: sealed with the highest fernet key, readable by every cloud that holds it, with ids and no roles inside.

Source: docs/upstream/real-keystone.md K1-K3, K9.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass

_PREFIX = "gAAAA"
_SEAL_CHARS = 43


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says. Times are seconds since 1970."""

    user_id: str
    project_id: str | None
    audit_id: str
    issued_at: int
    expires_at: int


def seal(token: Token, keys: Mapping[int, str]) -> str:
    """The text of a token under the primary key, the one with the highest id. Raises ValueError without keys."""
    fields = [token.user_id, token.project_id, token.audit_id, token.issued_at, token.expires_at]
    content = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()
    return _PREFIX + _seal(content, keys[max(keys)] if keys else "") + content


def unseal(text: str, keys: Mapping[int, str]) -> Token | None:
    """The token, or None when no key of this set made it, or when it is garbage."""
    found = text[len(_PREFIX) : len(_PREFIX) + _SEAL_CHARS]
    content = text[len(_PREFIX) + _SEAL_CHARS :]
    if not (text.startswith(_PREFIX) and text.isascii() and content):
        return None
    if not any(hmac.compare_digest(found, _seal(content, keys[key_id])) for key_id in sorted(keys, reverse=True)):
        return None
    return Token(*json.loads(base64.urlsafe_b64decode(content)))


def _seal(content: str, key: str) -> str:
    if not key:
        raise ValueError("no fernet keys")
    digest = hashlib.blake2b(content.encode(), key=key.encode(), digest_size=32).digest()
    return base64.urlsafe_b64encode(digest).decode()[:_SEAL_CHARS]
