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
if is_missing postgres_password; then random | write postgres_password; fi
if is_missing redis_password; then random | write redis_password; fi

postgres_password=$(cat "$folder/postgres_password")
redis_password=$(cat "$folder/redis_password")

if is_missing database_url; then
    printf 'postgresql://dcsync:%s@postgres:5432/dcsync' "$postgres_password" | write database_url
fi
if is_missing redis_url; then printf 'redis://:%s@redis:6379/0' "$redis_password" | write redis_url; fi
if is_missing redis.conf; then printf 'requirepass %s\n' "$redis_password" | write redis.conf; fi
if is_missing report_key; then random | write report_key; fi
if is_missing flower.py; then printf 'basic_auth = ["operator:%s"]\n' "$(random)" | write flower.py; fi
