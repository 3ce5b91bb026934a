# One image for every dcsync process; docker-compose.yml says which command each service runs.
#   docker build -t dcsync .
# Everything that is installed is checked against the hashes of constraints-build.txt and constraints-runtime.txt.

# By digest, for builds that shall not change: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# The driver is built from source against the system's libpq, so that its fixes come with the system's.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libpq-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints-build.txt constraints-runtime.txt ./
# Without build isolation, because pip checks no hashes of what it installs there.
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r constraints-build.txt \
    && /opt/build/bin/pip wheel --no-cache-dir --no-build-isolation --require-hashes --no-binary psycopg2-binary \
        -r constraints-runtime.txt -w /wheels
COPY . .
RUN /opt/build/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps -w /wheels . \
    && python -m venv /opt/dcsync \
    && /opt/dcsync/bin/pip install --no-cache-dir --no-index --no-deps /wheels/*.whl \
    && /opt/dcsync/bin/pip check


FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="dcsync" \
      org.opencontainers.image.description="Brings telecom subclouds into line with their central cloud, and keeps them there" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libpq5 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 dcsync \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin dcsync
COPY --from=build /opt/dcsync /opt/dcsync
ENV PATH=/opt/dcsync/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Python looks for modules here first: a folder that is root's, and holds none.
WORKDIR /opt/dcsync
USER 10001:10001
STOPSIGNAL SIGTERM
# No entry point: the command itself gets the signals.
CMD ["dcsync", "--help"]
