#!/bin/sh
# Fills secrets/ for docker-compose.yml: random passwords, and the addresses that hold them. Prints no secret.
#
#   sh deploy/make-secrets.sh [FOLDER]    FOLDER: ./secrets unless given
#
# The password of DCSYNC_USERNAME on the central cloud is asked for on a terminal, else read as one line from the
# standard input. What is there already is kept. The folder is its owner's alone; the files in it are readable, for
# each container that is given one has a user of its own.

set -eu
umask 077

folder=${1:-secrets}
mkdir -p "$folder"
chmod 700 "$folder"

# write NAME: the standard input becomes the file, whole or not at all.
write() {
    cat > "$folder/.$1.new"
    chmod 444 "$folder/.$1.new"
    mv -f "$folder/.$1.new" "$folder/$1"
    echo "made $folder/$1"
}

random() {
    od -An -v -N24 -tx1 /dev/urandom | tr -d ' \n'
}

is_missing() {
    [ ! -s "$folder/$1" ]
}

ask_central_password() {
    if [ -t 0 ]; then
        printf 'password of DCSYNC_USERNAME on the central cloud: ' >&2
        trap 'stty echo' EXIT INT TERM
        stty -echo
        IFS= read -r answer
        stty echo
        trap - EXIT INT TERM
        echo >&2
    else
        IFS= read -r answer || true
    fi
    if [ -z "$answer" ]; then
        echo "make-secrets: no password given; give it on the terminal or as the standard input" >&2
        exit 1
    fi
    printf '%s' "$answer"
}

if is_missing central_password; then
    password=$(ask_central_password)
    printf '%s' "$password" | write central_password
fi
for name in postgres_password postgres_owner_password postgres_app_password postgres_reader_password \
    redis_password; do
    if is_missing "$name"; then random | write "$name"; fi
done

# url ROLE: its address on the PostgreSQL of compose.
url() {
    printf 'postgresql://dcsync_%s:%s@postgres:5432/dcsync' "$1" "$(cat "$folder/postgres_$1_password")"
}

if is_missing owner_database_url; then url owner | write owner_database_url; fi
if is_missing database_url; then url app | write database_url; fi

# What dcsync's user of Redis may do; dcsync/adapters/broker/acl.py says why.
redis_rules='resetkeys resetchannels -@all ~dcsync:* ~control* ~sync* ~audit* ~state* ~_kombu.* ~unacked* ~celeryev.* ~*.celery.pidbox* &/0.celeryev &/0.celeryev/* &/0.celeryev/worker.* &/0.celery.pidbox +auth +hello +ping +select +client|setname +client|id +info +role +time +scan +get +set +mget +del +exists +expire +pexpire +pttl +ttl +type +lpush +rpush +rpop +brpop +llen +lrange +lrem +sadd +srem +smembers +scard +sismember +hset +hget +hdel +hgetall +hlen +hexists +hmget +hincrby +zadd +zrem +zrevrangebyscore +zrangebyscore +zrange +zcard +zscore +zremrangebyscore +incr +incrby +decr +setex +psetex +setnx +getdel +multi +exec +discard +watch +unwatch +eval +evalsha +script|load +script|exists +publish +subscribe +psubscribe +unsubscribe +punsubscribe'
if is_missing redis_url; then printf 'redis://dcsync:%s@redis:6379/0' "$(random)" | write redis_url; fi
if is_missing redis.conf; then
    {
        printf 'requirepass %s\n' "$(cat "$folder/redis_password")"
        # Nothing for an address with another user: then Redis has that user already.
        redis_app_password=$(sed -n 's|^rediss*://dcsync:\([^@]*\)@.*|\1|p' "$folder/redis_url")
        if [ -n "$redis_app_password" ]; then printf 'user dcsync on >%s %s\n' "$redis_app_password" "$redis_rules"; fi
    } | write redis.conf
fi
if is_missing report_key; then random | write report_key; fi
if is_missing flower.py; then printf 'basic_auth = ["operator:%s"]\n' "$(random)" | write flower.py; fi
