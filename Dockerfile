# An environment for the pipeline and its tests, with a copy of the project. docs/gpu-and-cluster.md, "In a container".
#   CPU:   docker build -t cmlab .
#   CUDA:  docker build -t cmlab --build-arg TORCH=cu130 .
FROM python:3.12-slim

# Which build of PyTorch: cpu, or a CUDA version as uv names it (uv pip install --help, --torch-backend). Wheels for CUDA
# bring its libraries along; the machine has to have the driver and NVIDIA's container toolkit.
ARG TORCH=cpu

# git and make for the pipeline; a C++ compiler for torch.compile.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /cmlab

# The Makefile takes its environment from here. HOME and DVC_SITE_CACHE_DIR are folders that any user can write to.
ENV VENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    USER=cmlab \
    DVC_SITE_CACHE_DIR=/tmp/dvc

WORKDIR /cmlab
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cmcore/__init__.py cmcore/
COPY stages/__init__.py stages/
# Installed before the sources are copied, so that a changed source does not install anything again. `make` compares the
# stamps with pyproject.toml and constraints.txt.
RUN python -m venv $VENV \
    && pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --no-cache --torch-backend $TORCH --python $VENV/bin/python \
        --constraints constraints.txt --editable '.[pipeline,metrics,dev,docs]' \
    && touch $VENV/.pipeline $VENV/.dev

COPY . .
CMD ["make", "help"]
