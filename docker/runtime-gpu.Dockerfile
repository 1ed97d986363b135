# Embeds on an NVIDIA GPU, with onnxruntime's CUDA provider and TensorRT-RTX engines. The host brings the driver.
# Build at the top of the repository: docker build -f docker/runtime-gpu.Dockerfile -t fgclip-rt:gpu .
FROM python:3.13.9-slim-bookworm AS build
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.13.9-slim-bookworm
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Both packages of onnxruntime install one module, and the one with the provider has to be the last.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[cli,cuda,tensorrt-rtx]" \
    && version="$(python -c 'from importlib.metadata import version; print(version("onnxruntime-gpu"))')" \
    && pip install --no-cache-dir --no-deps --force-reinstall "onnxruntime-gpu==$version" \
    && useradd --create-home --uid 1000 fgclip
USER 1000
WORKDIR /home/fgclip
ENTRYPOINT ["fgclip-rt"]
CMD ["doctor"]
