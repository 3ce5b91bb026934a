"""What dcsync's Redis user may do: the keys, channels and commands of Celery, Flower and our own, and no others.

The same rules are in deploy/make-secrets.sh. For Redis 6.2 or newer, or Valkey: a name that a server does not know
keeps it from starting, so CLIENT SETINFO (7.2) is missing; redis-py does without.
"""

from __future__ import annotations

USER = "dcsync"

_KEYS = (
    "dcsync:*",
    # Celery's queues, with a suffix for priorities; the bindings of exchanges; messages not acknowledged yet.
    "control*",
    "sync*",
    "audit*",
    "state*",
    "_kombu.*",
    "unacked*",
    # Events for Flower, and answers to remote control.
    "celeryev.*",
    "*.celery.pidbox*",
)
# Of database 0. A pattern that is subscribed to must stand here as it is, so there is none for all databases.
_CHANNELS = ("/0.celeryev", "/0.celeryev/*", "/0.celeryev/worker.*", "/0.celery.pidbox")
_COMMANDS = (
    "auth", "hello", "ping", "select", "client|setname", "client|id", "info", "role", "time", "scan",
    "get", "set", "mget", "del", "exists", "expire", "pexpire", "pttl", "ttl", "type",
    "lpush", "rpush", "rpop", "brpop", "llen", "lrange", "lrem",
    "sadd", "srem", "smembers", "scard", "sismember",
    "hset", "hget", "hdel", "hgetall", "hlen", "hexists", "hmget", "hincrby",
    "zadd", "zrem", "zrevrangebyscore", "zrangebyscore", "zrange", "zcard", "zscore", "zremrangebyscore",
    "incr", "incrby", "decr", "setex", "psetex", "setnx", "getdel",
    "multi", "exec", "discard", "watch", "unwatch", "eval", "evalsha", "script|load", "script|exists",
    "publish", "subscribe", "psubscribe", "unsubscribe", "punsubscribe",
)  # fmt: skip

RULES = " ".join(
    [
        "resetkeys",
        "resetchannels",
        "-@all",
        *(f"~{pattern}" for pattern in _KEYS),
        *(f"&{pattern}" for pattern in _CHANNELS),
        *(f"+{command}" for command in _COMMANDS),
    ]
)
