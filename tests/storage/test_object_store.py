"""Tests of sinks.object_store: images come whole into a real S3 server, whatever happens on their way."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from obstore.store import MemoryStore, S3Store

from krea_batch import Engine, Job
from krea_batch.errors import SettingsError
from krea_batch.rules.verdicts import Finished
from krea_batch.settings import Settings
from krea_batch.storage.sinks import SinkPermanentError, SinkTransientError, VerifiedImage
from krea_batch.storage.sinks.object_store import LARGE_BYTES, ObjectStoreSink
from krea_batch.testing.scripted_gateway import ScriptedGateway, make_png
from tests.engine_fixtures import make_jobs, run_jobs
from tests.engine_fixtures import rows_by_id as rows_by_id
from tests.processes import (
    COMMAND,
    PROCESS_TIMEOUT_S,
    StartSimulator,
    clean_environment,
    result_rows,
    run_command,
    write_jobs,
)
from tests.storage.s3_server import BUCKET, DropResponse, RecordedRequest, S3Server

BUCKET_URL = f"s3://{BUCKET}/runs/cats"
PREFIX = "runs/cats/"
SINK_SIMULATOR_OPTIONS = {"rate": "1000/s", "poll_interval_s": 0.05}
SINK_RUN_OPTIONS = ("--rate", "200/s", "--poll-interval", "0.1")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as s3_server:
        yield s3_server


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A bucket that is empty, its door open, and this process's environment leading to it."""
    server.reset()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


def staged_upload(folder: Path, name: str = "fox", data: bytes = b"") -> VerifiedImage:
    """An image as the engine would hand it over."""
    data = data or make_png(text=name.encode())
    path = folder / f"{hashlib.sha256(data).hexdigest()}.part"
    path.write_bytes(data)
    return VerifiedImage(name, 1, name, path, len(data), hashlib.sha256(data).hexdigest(), 4, 3, "image/png")


def check_objects(out: Path, bucket: S3Server, prefix: str = PREFIX) -> None:
    """Every job succeeded; the bucket has what the results say, byte by byte, and nothing else."""
    objects = bucket.objects()
    stored_keys = {}
    for row in result_rows(out):
        assert row["status"] == "succeeded", row
        for file in row["files"]:
            data = objects[file["path"].removeprefix(f"s3://{BUCKET}/")]
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
            assert len(data) == file["bytes"]
            stored_keys[file["path"]] = row["id"]
    assert set(stored_keys) == {f"s3://{BUCKET}/{key}" for key in objects if key.startswith(prefix)}
    assert os.listdir(out / "images") == []


class TestPut:
    def test_what_an_object_is(self, tmp_path: Path, bucket: S3Server) -> None:
        """It has the image's bytes, says that it is a PNG, carries its hash, and its URL is what results get."""
        image = staged_upload(tmp_path)
        assert asyncio.run(ObjectStoreSink.from_url(BUCKET_URL).put(image)) == f"{BUCKET_URL}/fox.png"
        assert bucket.objects() == {f"{PREFIX}fox.png": image.path.read_bytes()}
        headers = bucket.headers(f"{PREFIX}fox.png")
        assert headers["content-type"] == "image/png"
        assert headers["x-amz-meta-sha256"] == image.sha256

    @pytest.mark.parametrize("name", ["a fox", "Füchse~2", "a#b?c&d=e", "100%", "a%20b", "*[1]", 'q"<>|\\^`{}', "."])
    def test_any_id_can_be_a_key(self, tmp_path: Path, bucket: S3Server, name: str) -> None:
        """An id that is fit for a file is fit for an object, which is found again under the same name."""
        sink, image = ObjectStoreSink.from_url(BUCKET_URL), staged_upload(tmp_path, name)
        paths = [asyncio.run(sink.put(image)) for _ in range(2)]
        assert paths == [f"{BUCKET_URL}/{name}.png"] * 2
        assert len(bucket.uploaded_keys()) == 1

    def test_a_second_put_is_idempotent(self, tmp_path: Path, bucket: S3Server) -> None:
        """An image that already exists is found by its metadata, and not sent again."""
        sink, image = ObjectStoreSink.from_url(BUCKET_URL), staged_upload(tmp_path)
        assert {asyncio.run(sink.put(image)) for _ in range(3)} == {f"{BUCKET_URL}/fox.png"}
        assert bucket.uploaded_keys() == [f"{PREFIX}fox.png"]

    def test_the_same_bytes_without_metadata_are_ours(self, tmp_path: Path, bucket: S3Server) -> None:
        """An object that says nothing of its hash is read and compared."""
        image = staged_upload(tmp_path)
        bucket.put(f"{PREFIX}fox.png", image.path.read_bytes())
        assert asyncio.run(ObjectStoreSink.from_url(BUCKET_URL).put(image)) == f"{BUCKET_URL}/fox.png"
        assert bucket.uploaded_keys() == []

    @pytest.mark.parametrize("same_size", [True, False])
    def test_other_bytes_are_never_overwritten(self, tmp_path: Path, bucket: S3Server, same_size: bool) -> None:
        """Someone else's objects stay as they are; the image takes the first free name, and keeps it."""
        image = staged_upload(tmp_path)
        theirs = b"x" * (image.size_bytes if same_size else 7)
        bucket.put(f"{PREFIX}fox.png", theirs)
        bucket.put(f"{PREFIX}fox~2.png", theirs)
        sink = ObjectStoreSink.from_url(BUCKET_URL)
        assert {asyncio.run(sink.put(image)) for _ in range(2)} == {f"{BUCKET_URL}/fox~3.png"}
        objects = bucket.objects()
        assert objects[f"{PREFIX}fox.png"] == objects[f"{PREFIX}fox~2.png"] == theirs

    def test_a_name_that_is_taken_meanwhile(self, tmp_path: Path, bucket: S3Server) -> None:
        """An object that appears between the look and the upload is not overwritten: the store refuses."""

        def take_key(request: RecordedRequest) -> None:
            if request.method == "HEAD" and request.key == f"{PREFIX}fox.png" and not bucket.objects():
                bucket.put(request.key, b"theirs")

        bucket.after_request = take_key
        assert (
            asyncio.run(ObjectStoreSink.from_url(BUCKET_URL).put(staged_upload(tmp_path)))
            == f"{BUCKET_URL}/fox~2.png"
        )
        assert bucket.objects()[f"{PREFIX}fox.png"] == b"theirs"

    def test_an_upload_whose_response_is_lost(self, tmp_path: Path, bucket: S3Server) -> None:
        """The store has the image, we were not told: it is found, and one object is there."""
        lost: list[RecordedRequest] = []

        def drop_response(request: RecordedRequest) -> None:
            if request.is_upload and not lost:
                lost.append(request)
                raise DropResponse

        bucket.after_request = drop_response
        image = staged_upload(tmp_path)
        assert asyncio.run(_put_until_stored(ObjectStoreSink.from_url(BUCKET_URL), image)) == f"{BUCKET_URL}/fox.png"
        assert lost
        assert bucket.objects() == {f"{PREFIX}fox.png": image.path.read_bytes()}

    def test_large_images(self, tmp_path: Path, bucket: S3Server) -> None:
        """Images of 20 MB, more of them than are sent in parallel, arrive whole in one upload each."""
        images = [staged_upload(tmp_path, f"p{n}", bytes([n]) * (20 << 20)) for n in range(6)]
        assert images[0].size_bytes > LARGE_BYTES

        async def main() -> None:
            sink = ObjectStoreSink.from_url(BUCKET_URL)
            await asyncio.gather(*(sink.put(image) for image in images))

        asyncio.run(main())
        assert sorted(bucket.uploaded_keys()) == [f"{PREFIX}p{n}.png" for n in range(6)]
        hashes = {hashlib.sha256(data).hexdigest() for data in bucket.objects().values()}
        assert hashes == {image.sha256 for image in images}

    def test_a_store_made_by_the_caller(self, tmp_path: Path, bucket: S3Server) -> None:
        """Any store of obstore's will do, with a prefix of its own, of the sink's, or none."""
        there = bucket.environment["AWS_ENDPOINT_URL"]
        store = S3Store(BUCKET, prefix="runs", endpoint=there, client_options={"allow_http": True})
        assert (
            asyncio.run(ObjectStoreSink(store, prefix="cats").put(staged_upload(tmp_path))) == f"{BUCKET_URL}/fox.png"
        )
        assert asyncio.run(ObjectStoreSink(store).put(staged_upload(tmp_path))) == f"s3://{BUCKET}/runs/fox.png"
        assert set(bucket.objects()) == {f"{PREFIX}fox.png", "runs/fox.png"}
        assert asyncio.run(ObjectStoreSink(MemoryStore()).put(staged_upload(tmp_path))) == "memory:/fox.png"


async def _put_until_stored(sink: ObjectStoreSink, image: VerifiedImage) -> str:
    """Put as the downloader would: again after trouble that may pass."""
    for _ in range(5):
        try:
            return await sink.put(image)
        except SinkTransientError:
            continue
    raise AssertionError("it is never kept")


class TestSinkErrors:
    @pytest.mark.parametrize(
        ("status", "error", "said"),
        [
            (0, SinkTransientError, "is not reachable"),
            (500, SinkTransientError, "HTTP 500"),
            (503, SinkTransientError, "HTTP 503"),
            (429, SinkTransientError, "HTTP 429"),
            (403, SinkPermanentError, "HTTP 403"),
            (401, SinkPermanentError, "HTTP 401"),
            (404, SinkPermanentError, "no bucket"),
            (501, SinkPermanentError, "HTTP 501"),
        ],
    )
    def test_what_a_refused_upload_means(
        self, tmp_path: Path, bucket: S3Server, status: int, error: type[Exception], said: str
    ) -> None:
        """Trouble that may pass is a SinkError, what a person has to fix a SinkRefused; neither tells the key."""
        bucket.reject_status = lambda asked: status if asked.is_upload else None
        with pytest.raises(error, match=said) as raised:
            asyncio.run(ObjectStoreSink.from_url(BUCKET_URL).put(staged_upload(tmp_path)))
        assert "of-a-key" not in f"{raised.value!r} {raised.value.__cause__!r}"
        assert raised.value.__suppress_context__

    def test_a_key_that_may_write_but_not_read(self, tmp_path: Path, bucket: S3Server) -> None:
        """403 for looking is no reason not to put: the store itself refuses names that are taken."""
        bucket.reject_status = lambda asked: None if asked.is_upload else 403
        sink, image = ObjectStoreSink.from_url(BUCKET_URL), staged_upload(tmp_path)
        asyncio.run(sink.check())
        assert asyncio.run(sink.put(image)) == f"{BUCKET_URL}/fox.png"
        with pytest.raises(SinkPermanentError, match="may not read"):
            asyncio.run(sink.put(image))

    @pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId"])
    def test_check_finds_a_wrong_key(self, bucket: S3Server, code: str) -> None:
        """A key that may neither list nor write, or that the store does not know, is told before a cent is spent."""
        bucket.reject_status, bucket.reject_body = (lambda _: 403), f"<Error><Code>{code}</Code></Error>".encode()
        sink = ObjectStoreSink.from_url(BUCKET_URL)
        with pytest.raises(SinkPermanentError, match="refuses these credentials"):
            asyncio.run(sink.check())

    def test_check_finds_a_missing_bucket(self, bucket: S3Server) -> None:
        """Before a cent is spent."""
        sink = ObjectStoreSink.from_url(BUCKET_URL)
        asyncio.run(sink.check())
        bucket.delete()
        with pytest.raises(SinkPermanentError, match=f"no bucket for {BUCKET_URL}; create it"):
            asyncio.run(sink.check())

    @pytest.mark.parametrize(
        "url",
        [
            "images", "ftp://host/images", "file:///tmp", "s3://", "s3:///folder", "s3://id:secret@bucket/a",
            "s3://bucket/a?secret=b", "s3://bucket/a b", "s3://bucket/../a", "s3://bucket//a",
        ],
    )  # fmt: skip
    def test_a_url_that_is_none(self, tmp_path: Path, url: str) -> None:
        """It is a SettingsError that shows the right form and no secret, before anything else is done."""
        with pytest.raises(SettingsError, match="s3://bucket/folder") as raised:
            Engine(tmp_path, api_key="k", sink=url)
        assert raised.value.parameter == "sink"
        assert "secret" not in str(raised.value)

    def test_settings_alone_know_it(self, tmp_path: Path) -> None:
        """A sink by URL is one of the settings, so environment and krea-batch.toml can name it."""
        assert Settings(out=tmp_path).sink is None
        assert Settings.from_options(tmp_path, sink=BUCKET_URL).sink == BUCKET_URL


@pytest.mark.slow
class TestEngine:
    def test_a_run_into_a_bucket(self, tmp_path: Path, bucket: S3Server) -> None:
        """Forty jobs of two outputs are eighty objects, uploaded once each; the folder keeps none."""

        class TwoObjectsGateway(ScriptedGateway):
            def finished(self, request_id: str, outputs: int = 1) -> Finished:
                return super().finished(request_id, 2)

        gateway = TwoObjectsGateway()
        asyncio.run(run_jobs(tmp_path, gateway, make_jobs(40), sink=BUCKET_URL, **SINK_SIMULATOR_OPTIONS))
        check_objects(tmp_path, bucket)
        assert set(bucket.objects()) == {f"{PREFIX}j{n}{nth}.png" for n in range(40) for nth in ("", "-2")}
        assert set(Counter(bucket.uploaded_keys()).values()) == {1}
        objects = bucket.objects()
        for row in rows_by_id(tmp_path).values():
            key = row["files"][0]["path"].removeprefix(f"s3://{BUCKET}/")
            assert objects[key] == make_png(text=row["request"]["prompt"].encode())

    def test_a_store_that_goes_away_and_comes_back(self, tmp_path: Path, bucket: S3Server) -> None:
        """Ten uploads without a response and ten with 503 delay their images, and cost no download and no POST."""
        reject_statuses = iter([0] * 10 + [503] * 10)
        bucket.reject_status = lambda asked: next(reject_statuses, None) if asked.is_upload else None
        gateway = ScriptedGateway()
        asyncio.run(run_jobs(tmp_path, gateway, make_jobs(30), sink=BUCKET_URL, **SINK_SIMULATOR_OPTIONS))
        check_objects(tmp_path, bucket)
        assert next(reject_statuses, None) is None
        assert len(gateway.submitted_bodies) == len(gateway.downloads) == 30

    def test_a_bucket_deleted_during_a_run(self, tmp_path: Path, bucket: S3Server) -> None:
        """A missing bucket in mid-run stops the run by name; with the bucket there, the next one brings all home."""

        def delete_bucket(_: RecordedRequest) -> None:
            if len(bucket.uploaded_keys()) >= 3:
                bucket.reject_status = lambda _: 404

        bucket.after_request = delete_bucket
        gateway = ScriptedGateway()
        todo = [Job(prompt=f"j{n}", id=f"j{n}") for n in range(200)]
        engine = asyncio.run(
            run_jobs(tmp_path, gateway, todo, sink=BUCKET_URL, max_in_flight=5, **SINK_SIMULATOR_OPTIONS)
        )
        assert f"no bucket for {BUCKET_URL}" in str(engine.stopped)
        assert len(gateway.submitted_bodies) < 200
        bucket.reject_status, bucket.after_request = (lambda _: None), (lambda _: None)
        asyncio.run(run_jobs(tmp_path, gateway, todo, sink=BUCKET_URL, **SINK_SIMULATOR_OPTIONS))
        check_objects(tmp_path, bucket)
        assert len(gateway.submitted_bodies) == 200


def start_run(folder: Path, gateway: str) -> subprocess.Popen[bytes]:
    """Begin the run of jobs.jsonl into the bucket."""
    command = [
        *COMMAND,
        "run",
        "jobs.jsonl",
        "--out",
        "out",
        "--gateway",
        gateway,
        "--sink",
        BUCKET_URL,
        *SINK_RUN_OPTIONS,
        "--quiet",
    ]
    return subprocess.Popen(
        command, cwd=folder, env=clean_environment(PIXAZO_API_KEY="test-key"), stderr=subprocess.PIPE
    )


def allow_one_upload() -> Callable[[RecordedRequest], int | None]:
    """A door that is shut to all uploads but the first."""
    first = threading.Lock()
    return lambda asked: 0 if asked.is_upload and not first.acquire(blocking=False) else None


def kill_after_upload(process: subprocess.Popen[bytes]) -> Callable[[RecordedRequest], None]:
    """Kill a process when an image of its is in."""

    def kill_process(request: RecordedRequest) -> None:
        if request.is_upload:
            process.kill()
            process.wait(PROCESS_TIMEOUT_S)

    return kill_process


@pytest.mark.slow
class TestCommand:
    def test_simulated_into_a_bucket(self, tmp_path: Path, bucket: S3Server) -> None:
        """The command puts the simulator's own images there, by an option from the environment, and says where."""
        write_jobs(tmp_path / "jobs.jsonl", 6)
        command = ("run", "jobs.jsonl", "--out", "out", "--simulate", "--time-scale", "50", *SINK_RUN_OPTIONS)
        done = run_command(*command, cwd=tmp_path, KREA_BATCH_SINK=BUCKET_URL)
        assert done.returncode == 0, done.stderr
        assert f"images:   {BUCKET_URL}" in done.stdout
        check_objects(tmp_path / "out", bucket)
        assert len(bucket.objects()) == 6
        assert "of-a-key" not in done.stdout + done.stderr

    def test_the_simulators_images_arrive(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """Each object shows its own request_id and prompt, and has the bytes whose hash is in the results."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        write_jobs(tmp_path / "jobs.jsonl", 30)
        command = ("run", "jobs.jsonl", "--gateway", simulator.gateway_url, *SINK_RUN_OPTIONS, "--out")
        assert run_command(*command, "out", "--sink", BUCKET_URL, cwd=tmp_path).returncode == 0
        check_objects(tmp_path / "out", bucket)
        objects = bucket.objects()
        for row in result_rows(tmp_path / "out"):
            data = objects[row["files"][0]["path"].removeprefix(f"s3://{BUCKET}/")]
            assert row["request_id"].encode() in data
            assert row["request"]["prompt"].encode() in data
        assert len([post for post in simulator.admin_request("/ledger")["posts"] if post["charged"]]) == 30

    def test_killed_between_upload_and_record(
        self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator
    ) -> None:
        """Killed the moment the store has an image, five times: all come home, uploaded once, paid once."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        write_jobs(tmp_path / "jobs.jsonl", 20)
        for kills in range(1, 6):
            process = start_run(tmp_path, simulator.gateway_url)
            bucket.reject_status, bucket.after_request = allow_one_upload(), kill_after_upload(process)
            process.communicate(timeout=PROCESS_TIMEOUT_S)
            assert process.returncode == -signal.SIGKILL
            assert len(bucket.objects()) == kills
        bucket.reject_status, bucket.after_request = (lambda _: None), (lambda _: None)
        last = start_run(tmp_path, simulator.gateway_url)
        _, said = last.communicate(timeout=PROCESS_TIMEOUT_S)
        assert last.returncode in (0, 1), said
        posts = [post for post in simulator.admin_request("/ledger")["posts"] if post["charged"]]
        paid = Counter(post["body"]["prompt"] for post in posts)
        assert max(paid.values()) == 1
        found = result_rows(tmp_path / "out")
        ambiguous = [row for row in found if row["status"] == "ambiguous"]  # killed while POSTs were in flight
        assert all(row["status"] == "succeeded" for row in found if row not in ambiguous)
        assert len(found) == 20
        objects = bucket.objects()
        assert len(objects) == 20 - len(ambiguous)
        for row in found:
            for file in row["files"]:
                data = objects[file["path"].removeprefix(f"s3://{BUCKET}/")]
                assert hashlib.sha256(data).hexdigest() == file["sha256"]

    def test_a_missing_bucket_costs_nothing(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """Exit code 3 and a sentence with the next step, no POST; with the bucket made, it goes on."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        write_jobs(tmp_path / "jobs.jsonl", 5)
        bucket.delete()
        process = start_run(tmp_path, simulator.gateway_url)
        _, said = process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 3
        assert f"no bucket for {BUCKET_URL}; create it or fix" in said.decode()
        assert not simulator.admin_request("/ledger")["posts"]
        bucket.create()
        process = start_run(tmp_path, simulator.gateway_url)
        _, said = process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 0, said
        check_objects(tmp_path / "out", bucket)
        assert len([post for post in simulator.admin_request("/ledger")["posts"] if post["charged"]]) == 5
