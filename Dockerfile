# syntax=docker/dockerfile:1
# roentgen with the weights of `mini` inside: a server on port 8000, or any other command.
#   docker build --tag roentgen .                                        for CPUs
#   docker build --tag roentgen:cuda --build-arg FLAVOUR=cuda .          for NVIDIA GPUs
ARG FLAVOUR=cpu

FROM python:3.12-slim-bookworm AS base-cpu
ENV TORCH_INDEX=https://download.pytorch.org/whl/cpu

# PyTorch's wheels bring CUDA's libraries; the driver comes from the host.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04 AS base-cuda
ENV TORCH_INDEX=https://download.pytorch.org/whl/cu128
# Versions are those of the base's release: an older one leaves its archive with the next security fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM base-${FLAVOUR} AS build
RUN python3 -m venv /opt/roentgen
ENV PATH=/opt/roentgen/bin:$PATH
# pyproject.toml says the versions. PyTorch comes first and alone: its layer stays when the code changes.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"
COPY pyproject.toml README.md LICENSE /src/
COPY roentgen /src/roentgen
RUN pip install --no-cache-dir "/src[serve,dicom]"

# hadolint ignore=DL3006
FROM base-${FLAVOUR} AS final
LABEL org.opencontainers.image.title="roentgen" \
      org.opencontainers.image.description="Synthetic chest X-rays from text. For research only, not for diagnosis." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/roentgen /opt/roentgen
# /data is the user's folder, /models keeps what is fetched from a model hub.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /models roentgen \
    && install --directory --owner roentgen --group roentgen /data /models
ENV PATH=/opt/roentgen/bin:$PATH \
    HF_HOME=/models \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["roentgen"]
CMD ["serve", "--host", "0.0.0.0"]
