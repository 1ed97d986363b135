# Embeds on a CPU. Build at the top of the repository: docker build -f docker/runtime-cpu.Dockerfile -t fgclip-rt .
FROM python:3.13.9-slim-bookworm AS build
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.13.9-slim-bookworm
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[cli]" \
    && useradd --create-home --uid 1000 fgclip
USER 1000
WORKDIR /home/fgclip
ENTRYPOINT ["fgclip-rt"]
CMD ["verify", "fg-clip2-pocket"]
