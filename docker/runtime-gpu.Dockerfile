# The runtime on an NVIDIA GPU, by onnxruntime's CUDA provider; the driver must be of version 580 or later.
# docker build -f docker/runtime-gpu.Dockerfile -t fgclip-rt-gpu . && docker run --gpus all fgclip-rt-gpu
FROM python:3.13.7-slim-trixie
COPY . /source
# onnxruntime and onnxruntime-gpu install the same module, so the second has to come last, alone.
RUN pip install --no-cache-dir '/source[cli]' \
    && pip uninstall --yes onnxruntime \
    && pip install --no-cache-dir 'onnxruntime-gpu[cuda,cudnn]>=1.30' \
    && rm -rf /source \
    && useradd --create-home --uid 10001 fgclip
USER fgclip
WORKDIR /home/fgclip
ENTRYPOINT ["fgclip-rt"]
CMD ["doctor"]
