# docker build -t krea-batch .
# docker run --init --read-only -v "$PWD/runs:/data" -v "$PWD/jobs.jsonl:/jobs.jsonl:ro" -e PIXAZO_API_KEY \
#     krea-batch run /jobs.jsonl --out /data/cats --rate 10/s --yes
#
# The user has the number 1000 and has to be allowed to write to the directory that is mounted on /data.
FROM python:3.13-slim-trixie AS build
ARG EXTRAS=fast,metrics,object-store,postgres,simulator
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY release release
COPY krea_batch krea_batch
RUN python -m venv /opt/krea-batch \
    && /opt/krea-batch/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

FROM python:3.13-slim-trixie
RUN useradd --uid 1000 krea && install -d -o krea -g krea /data
COPY --from=build /opt/krea-batch /opt/krea-batch
ENV PATH=/opt/krea-batch/bin:$PATH
USER 1000:1000
WORKDIR /data
VOLUME /data
# Nothing more is submitted, and the jobs in flight are completed. A second signal stops immediately.
STOPSIGNAL SIGTERM
ENTRYPOINT ["krea-batch"]
