# syntax=docker/dockerfile:1
# The image is the static binary, the CA certificates, the example modules and their configurations: no shell, no packages, no root.
#
#   docker build -t wasmsidecar .
#   docker run --rm -p 127.0.0.1:4222:4222 -v jobs:/data wasmsidecar --config embedded.yaml

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o /out/wasmsidecar ./cmd/wasmsidecar
RUN mkdir -p /out/examples/guests /out/data /out/tmp && chmod 1777 /out/tmp && \
    cp -r configs /out/configs && cp examples/guests/*.wasm /out/examples/guests/

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/tmp /tmp
COPY --from=build --chown=65532:65532 /out/data /data
COPY --from=build /out/configs /configs
COPY --from=build /out/examples /examples
COPY --from=build /out/wasmsidecar /wasmsidecar
ENV HOME=/data WASMSIDECAR_DATA=/data/jobs XDG_CACHE_HOME=/data/cache
USER 65532:65532
VOLUME /data
EXPOSE 9464 4222
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/wasmsidecar", "healthcheck"]
ENTRYPOINT ["/wasmsidecar"]
