# The image that answers MIDOG 2025 Track 2 on grand-challenge.org. What it runs: submission/inference.py.
#
#   midog container build BUNDLE     bakes the bundle in
#   docker build .                   without weights: they come as a model tarball, uploaded beside the image
#
# Layers from what changes least to what changes most: base, packages, code, weights.

# CUDA 12.6 runs on drivers from 525 on; the platform's own templates use this base. DIGEST (sha256:...) pins its bytes.
ARG BASE=docker.io/pytorch/pytorch:2.9.1-cuda12.6-cudnn9-runtime
ARG DIGEST=
# none: an uploaded model tarball; baked: the unpacked bundle in model/
ARG WEIGHTS=none

FROM ${BASE}${DIGEST:+@${DIGEST}} AS packages
# base: the torch of the base image; index: the same pair from the package index, where the base has none
ARG TORCH=base
ARG TORCH_VERSION=2.9.1
ARG TORCHVISION_VERSION=0.24.1
ARG CUDA=12.6
# A user with a passwd entry and a home: the platform refuses root, and HOME would be root's without the entry.
RUN useradd --create-home --uid 10001 --shell /bin/bash midog && mkdir -p /opt/app /input /output
# An environment of its own that sees the base's torch; the base's pip fills it, as its Python may be managed by the system.
RUN python3 -m venv --system-site-packages --without-pip /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements-container.txt /opt/app/
RUN if [ "$TORCH" = index ]; then \
      python3 -m pip --python /opt/venv/bin/python install --no-cache-dir \
        torch==$TORCH_VERSION torchvision==$TORCHVISION_VERSION; fi \
 && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --require-hashes \
      -r /opt/app/requirements-container.txt
# A wrong pair fails here, not on the platform. (A public way to the list of architectures needs a GPU.)
RUN python -c "import timm, torch, torchvision as v; \
found = [torch.__version__.split('+')[0], v.__version__.split('+')[0], torch.version.cuda or 'none']; \
assert found == '$TORCH_VERSION $TORCHVISION_VERSION $CUDA'.split(), found; \
assert torch.version.cuda is None or 'sm_75' in torch._C._cuda_getArchFlags(), 'not built for a T4'"
# Compiled once: the file system is read-only when a job runs, so every job would compile anew.
RUN python -m compileall -q -j 0 /opt/venv "$(python -c 'import torch; print(torch.__path__[0].rpartition("/")[0])')"

FROM packages AS code
# Nothing but /output and /tmp can be written while a job runs, and there is no network.
ENV HOME=/tmp LANG=C.UTF-8 LC_ALL=C.UTF-8 PYTHONIOENCODING=utf-8:backslashreplace PYTHONUTF8=1 \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore PYTHONNOUSERSITE=1 OMP_WAIT_POLICY=PASSIVE \
    TQDM_DISABLE=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 NO_ALBUMENTATIONS_UPDATE=1 \
    XDG_CACHE_HOME=/tmp/cache TORCH_HOME=/tmp/cache/torch HF_HOME=/tmp/cache/hf MPLCONFIGDIR=/tmp/cache/matplotlib \
    NUMBA_CACHE_DIR=/tmp/cache/numba TRITON_CACHE_DIR=/tmp/cache/triton TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor
COPY LICENSE /opt/app/
COPY midog /opt/app/midog/
COPY augment /opt/app/augment/
COPY ensemble /opt/app/ensemble/
COPY submission /opt/app/submission/
COPY submission/inference.py /opt/app/inference.py
RUN chmod -R a+rX /opt/app && python -m compileall -q /opt/app && cd /opt/app && python inference.py --help > /dev/null

FROM code AS weights-none
FROM code AS weights-baked
COPY model /opt/app/model/

FROM weights-${WEIGHTS}
# exec answers one job and ends; invoke serves many. Label and handler read the same argument, so they agree.
ARG API=exec
ARG TIME_BUDGET=
ARG SUBMISSION=unnamed
ARG COMMIT=unknown
ENV MIDOG_API=${API} MIDOG_TIME_BUDGET=${TIME_BUDGET}
# The platform refuses an image it has seen before: a new submission id makes a new digest.
LABEL org.grand-challenge.api-method=${API} org.midog.submission=${SUBMISSION} org.opencontainers.image.revision=${COMMIT}
USER midog
WORKDIR /opt/app
ENTRYPOINT ["/opt/venv/bin/python", "/opt/app/inference.py"]
