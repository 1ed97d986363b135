# Export of checkpoints, with torch: about 8 GB. docker build -f docker/export.Dockerfile -t fgclip-rt-export .
# docker run -v "$PWD:/work" fgclip-rt-export --model fg-clip2-base --output bundle
FROM python:3.13.7-slim-trixie
COPY . /source
RUN pip install --no-cache-dir '/source[cli,export]' && rm -rf /source && useradd --create-home --uid 10001 fgclip
USER fgclip
WORKDIR /work
ENTRYPOINT ["fgclip-rt", "export"]
