# For a machine without a GPU. From the root of the repository:
#   docker build --file docker/cpu.Dockerfile --tag vlm-posttrain:cpu .
#   docker run --rm --volume "$PWD":/work vlm-posttrain:cpu grpo --config my_task.yaml
FROM python:3.11.14-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

COPY . /opt/vlm-posttrain

# The other index has torch without CUDA, which pip prefers where it has the version that is asked for.
RUN pip install --constraint /opt/vlm-posttrain/constraints/cpu.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu '/opt/vlm-posttrain[quickstart]'

WORKDIR /work
ENTRYPOINT ["vlm-posttrain"]
CMD ["--help"]
