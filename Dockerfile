# Two images: `service` (API, scheduler, migrations; no torch) and `worker` (with torch).
# Which torch: TORCH_INDEX, the CPU build unless told otherwise; PyPI has the one with CUDA.

FROM python:3.11-slim-bookworm AS runtime
ENV PATH=/opt/manylora/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MANYLORA_HOME=/var/lib/manylora
RUN groupadd --gid 10001 manylora \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/manylora manylora \
 && install --directory --owner=manylora --group=manylora /var/lib/manylora
WORKDIR /var/lib/manylora

FROM runtime AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/manylora
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY lora_core lora_core
COPY manylora manylora
COPY migrations migrations
COPY scheduler scheduler
COPY worker worker
RUN pip install --constraint requirements.lock .

FROM build AS build-worker
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --constraint requirements.lock --extra-index-url "$TORCH_INDEX" ".[worker]"

FROM runtime AS worker
# The trainer's kernels are compiled for the processor they run on.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build-worker /opt/manylora /opt/manylora
COPY deploy/health.py /opt/manylora/deploy/
USER 10001:10001
ENTRYPOINT ["manylora"]
CMD ["worker"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m \
  CMD ["python", "/opt/manylora/deploy/health.py", "worker"]

FROM runtime AS service
COPY --from=build /opt/manylora /opt/manylora
COPY deploy/health.py deploy/migrate.py deploy/first_key.py /opt/manylora/deploy/
USER 10001:10001
ENTRYPOINT ["manylora"]
CMD ["api"]
HEALTHCHECK --interval=15s --timeout=10s --start-period=1m \
  CMD ["python", "/opt/manylora/deploy/health.py", "api"]
