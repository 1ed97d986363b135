# The runtime on a CPU. From the root of a checkout: docker build -f docker/runtime.Dockerfile -t fgclip-rt .
FROM python:3.13.7-slim-trixie
COPY . /source
RUN pip install --no-cache-dir '/source[cli]' && rm -rf /source && useradd --create-home --uid 10001 fgclip
USER fgclip
WORKDIR /home/fgclip
ENTRYPOINT ["fgclip-rt"]
CMD ["doctor"]
