# Exports checkpoints to bundles, on a CPU. Build at the top of the repository:
# docker build -f docker/export.Dockerfile -t fgclip-rt:export .
FROM python:3.13.9-slim-bookworm
COPY . /source
# The CPU build of torch; the default one brings gigabytes of CUDA.
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir "/source[cli,export]" \
    && useradd --create-home --uid 1000 fgclip
USER 1000
WORKDIR /home/fgclip
ENTRYPOINT ["fgclip-rt"]
CMD ["export", "--help"]
