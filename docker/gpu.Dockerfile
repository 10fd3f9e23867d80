# For NVIDIA GPUs, with a driver for CUDA 13 and the NVIDIA container toolkit. From the root of the repository:
#   docker build --file docker/gpu.Dockerfile --tag vlm-posttrain:gpu .
#   docker run --rm --gpus all --ipc host --volume "$PWD":/work vlm-posttrain:gpu grpo --config agent_selection --launch zero3
FROM python:3.11.14-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# torch's wheel brings CUDA. Triton, of torch and of vLLM, compiles its kernels with a C compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/vlm-posttrain

RUN pip install --constraint /opt/vlm-posttrain/constraints/vllm-gpu.txt '/opt/vlm-posttrain[vllm,quickstart]'

WORKDIR /work
ENTRYPOINT ["vlm-posttrain"]
CMD ["--help"]
