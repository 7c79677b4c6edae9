"""`ObjectStoreSink` stores complete images in a real S3 server, whatever errors occur."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import MemoryStore, S3Store

from krea_batch import Engine, Job
from krea_batch.errors import SettingsError
from krea_batch.rules.verdicts import Finished
from krea_batch.settings import Settings
from krea_batch.storage.sinks import SinkPermanentError, SinkTransientError, VerifiedImage
from krea_batch.storage.sinks.object_store import LARGE_BYTES, ObjectStoreSink
from krea_batch.testing import ScriptedGateway, make_png
from tests.engine_fixtures import make_jobs, rows_by_id, run_jobs
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


def staged_upload(folder: Path, name: str = "fox", data: bytes = b"") -> VerifiedImage:
    """Return an image as the engine passes it to a sink."""
    data = data or make_png(text=name.encode())
    path = folder / f"{hashlib.sha256(data).hexdigest()}.part"
    path.write_bytes(data)
    return VerifiedImage(name, 1, name, path, len(data), hashlib.sha256(data).hexdigest(), 4, 3, "image/png")


def check_objects(out: Path, bucket: S3Server, prefix: str = PREFIX) -> None:
    """Assert that every job succeeded, and that the bucket has exactly the images of the results, byte for byte."""
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
    def test_an_object(self, tmp_path: Path, bucket: S3Server) -> None:
        """An object has the bytes, media type and hash of the image. `put` returns its URL."""
        image = staged_upload(tmp_path)
        assert asyncio.run(ObjectStoreSink.from_url(BUCKET_URL).put(image)) == f"{BUCKET_URL}/fox.png"
        assert bucket.objects() == {f"{PREFIX}fox.png": image.path.read_bytes()}
        headers = bucket.headers(f"{PREFIX}fox.png")
        assert headers["content-type"] == "image/png"
        assert headers["x-amz-meta-sha256"] == image.sha256

    @pytest.mark.parametrize("name", ["a fox", "Füchse~2", "a#b?c&d=e", "100%", "a%20b", "*[1]", 'q"<>|\\^`{}', "."])
    def test_any_id_can_be_a_key(self, tmp_path: Path, bucket: S3Server, name: str) -> None:
        """Every id that is allowed for a file is allowed for an object, and a second put finds the same object."""
        sink, image = ObjectStoreSink.from_url(BUCKET_URL), staged_upload(tmp_path, name)
        paths = [asyncio.run(sink.put(image)) for _ in range(2)]
        assert paths == [f"{BUCKET_URL}/{name}.png"] * 2
        assert len(bucket.uploaded_keys()) == 1

    def test_a_second_put_is_idempotent(self, tmp_path: Path, bucket: S3Server) -> None:
        """An image that is already stored is found by its metadata and not uploaded again."""
        sink, image = ObjectStoreSink.from_url(BUCKET_URL), staged_upload(tmp_path)
        assert {asyncio.run(sink.put(image)) for _ in range(3)} == {f"{BUCKET_URL}/fox.png"}
        assert bucket.uploaded_keys() == [f"{PREFIX}fox.png"]

    def test_the_same_bytes_without_metadata_are_ours(self, tmp_path: Path, bucket: S3Server) -> None:
        """An object without a hash in its metadata is read and compared."""
        image = staged_upload(tmp_path)
        bucket.put(f"{PREFIX}fox.png", image.path.read_bytes())
        assert asyncio.run(ObjectStoreSink.from_url(BUCKET_URL).put(image)) == f"{BUCKET_URL}/fox.png"
        assert bucket.uploaded_keys() == []

    @pytest.mark.parametrize("same_size", [True, False])
    def test_other_bytes_are_never_overwritten(self, tmp_path: Path, bucket: S3Server, same_size: bool) -> None:
        """Foreign objects are not changed. The image gets the first free name, also at a second put."""
        image = staged_upload(tmp_path)
        foreign = b"x" * (image.size_bytes if same_size else 7)
        bucket.put(f"{PREFIX}fox.png", foreign)
        bucket.put(f"{PREFIX}fox~2.png", foreign)
        sink = ObjectStoreSink.from_url(BUCKET_URL)
        assert {asyncio.run(sink.put(image)) for _ in range(2)} == {f"{BUCKET_URL}/fox~3.png"}
        objects = bucket.objects()
        assert objects[f"{PREFIX}fox.png"] == objects[f"{PREFIX}fox~2.png"] == foreign

    def test_a_name_that_is_taken_meanwhile(self, tmp_path: Path, bucket: S3Server) -> None:
        """An object that appears between HEAD and PUT is not overwritten: the store refuses the upload."""

        def take_key(request: RecordedRequest) -> None:
            if request.method == "HEAD" and request.key == f"{PREFIX}fox.png" and not bucket.objects():
                bucket.put(request.key, b"foreign")

        bucket.after_request = take_key
        assert (
            asyncio.run(ObjectStoreSink.from_url(BUCKET_URL).put(staged_upload(tmp_path)))
            == f"{BUCKET_URL}/fox~2.png"
        )
        assert bucket.objects()[f"{PREFIX}fox.png"] == b"foreign"

    def test_an_upload_whose_response_is_lost(self, tmp_path: Path, bucket: S3Server) -> None:
        """If the response to an upload is lost, the next put finds the object. There is one object."""
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
        """Images of 20 MB, more than are uploaded in parallel, are complete and uploaded once each."""
        images = [staged_upload(tmp_path, f"p{n}", bytes([n]) * (20 << 20)) for n in range(6)]
        assert images[0].size_bytes > LARGE_BYTES

        async def main() -> None:
            sink = ObjectStoreSink.from_url(BUCKET_URL)
            await asyncio.gather(*(sink.put(image) for image in images))

        asyncio.run(main())
        assert sorted(bucket.uploaded_keys()) == [f"{PREFIX}p{n}.png" for n in range(6)]
        hashes = {hashlib.sha256(data).hexdigest() for data in bucket.objects().values()}
        assert hashes == {image.sha256 for image in images}

    def test_a_store_of_the_caller(self, tmp_path: Path, bucket: S3Server) -> None:
        """Any store of obstore works, with a prefix of the store, of the sink, or none."""
        endpoint = bucket.environment["AWS_ENDPOINT_URL"]
        store = S3Store(BUCKET, prefix="runs", endpoint=endpoint, client_options={"allow_http": True})
        assert (
            asyncio.run(ObjectStoreSink(store, prefix="cats").put(staged_upload(tmp_path))) == f"{BUCKET_URL}/fox.png"
        )
        assert asyncio.run(ObjectStoreSink(store).put(staged_upload(tmp_path))) == f"s3://{BUCKET}/runs/fox.png"
        assert set(bucket.objects()) == {f"{PREFIX}fox.png", "runs/fox.png"}
        assert asyncio.run(ObjectStoreSink(MemoryStore()).put(staged_upload(tmp_path))) == "memory:/fox.png"


async def _put_until_stored(sink: ObjectStoreSink, image: VerifiedImage) -> str:
    """Put an image as the downloader does: again after a transient error."""
    for _ in range(5):
        try:
            return await sink.put(image)
        except SinkTransientError:
            continue
    raise AssertionError("the image is never stored")


class TestSinkErrors:
    @pytest.mark.parametrize(
        ("status", "error", "message"),
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
    def test_a_refused_upload(
        self, tmp_path: Path, bucket: S3Server, status: int, error: type[Exception], message: str
    ) -> None:
        """Errors that may pass are transient, errors that a person must fix are permanent. Neither shows the key."""
        bucket.reject_status = lambda request: status if request.is_upload else None
        with pytest.raises(error, match=message) as raised:
            asyncio.run(ObjectStoreSink.from_url(BUCKET_URL).put(staged_upload(tmp_path)))
        assert "of-a-key" not in f"{raised.value!r} {raised.value.__cause__!r}"
        assert raised.value.__suppress_context__

    def test_credentials_that_may_write_but_not_read(self, tmp_path: Path, bucket: S3Server) -> None:
        """Credentials that may not read can store images, since the store refuses names that are taken."""
        bucket.reject_status = lambda request: None if request.is_upload else 403
        sink, image = ObjectStoreSink.from_url(BUCKET_URL), staged_upload(tmp_path)
        asyncio.run(sink.check())
        assert asyncio.run(sink.put(image)) == f"{BUCKET_URL}/fox.png"
        with pytest.raises(SinkPermanentError, match="may not read"):
            asyncio.run(sink.put(image))

    @pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId"])
    def test_check_finds_wrong_credentials(self, bucket: S3Server, code: str) -> None:
        """`check` raises for credentials that are unknown or may not list and write, before anything is charged."""
        bucket.reject_status, bucket.reject_body = (lambda _: 403), f"<Error><Code>{code}</Code></Error>".encode()
        sink = ObjectStoreSink.from_url(BUCKET_URL)
        with pytest.raises(SinkPermanentError, match="refuses these credentials"):
            asyncio.run(sink.check())

    def test_check_finds_a_missing_bucket(self, bucket: S3Server) -> None:
        """`check` raises for a missing bucket, before anything is charged."""
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
    def test_an_invalid_url(self, tmp_path: Path, url: str) -> None:
        """An invalid URL raises a SettingsError that shows an example and no secret."""
        with pytest.raises(SettingsError, match="s3://bucket/folder") as raised:
            Engine(tmp_path, api_key="k", sink=url)
        assert raised.value.parameter == "sink"
        assert "secret" not in str(raised.value)

    def test_the_url_is_a_setting(self, tmp_path: Path) -> None:
        """The URL of a sink is a setting, so the environment can have it."""
        assert Settings(out=tmp_path).sink is None
        assert Settings.from_options(tmp_path, sink=BUCKET_URL).sink == BUCKET_URL


@pytest.mark.slow
class TestEngine:
    def test_a_run_into_a_bucket(self, tmp_path: Path, bucket: S3Server) -> None:
        """Forty jobs with two outputs make eighty objects, uploaded once each. The run directory has no image."""

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

    def test_a_store_that_fails_for_a_while(self, tmp_path: Path, bucket: S3Server) -> None:
        """Ten uploads without a response and ten with 503 delay their images, without another download or POST."""
        reject_statuses = iter([0] * 10 + [503] * 10)
        bucket.reject_status = lambda request: next(reject_statuses, None) if request.is_upload else None
        gateway = ScriptedGateway()
        asyncio.run(run_jobs(tmp_path, gateway, make_jobs(30), sink=BUCKET_URL, **SINK_SIMULATOR_OPTIONS))
        check_objects(tmp_path, bucket)
        assert next(reject_statuses, None) is None
        assert len(gateway.submitted_bodies) == len(gateway.downloads) == 30

    def test_a_bucket_deleted_during_a_run(self, tmp_path: Path, bucket: S3Server) -> None:
        """A bucket that is deleted stops the run with its name. With the bucket, the next run stores all images."""

        def delete_bucket(_: RecordedRequest) -> None:
            if len(bucket.uploaded_keys()) >= 3:
                bucket.reject_status = lambda _: 404

        bucket.after_request = delete_bucket
        gateway = ScriptedGateway()
        jobs = [Job(prompt=f"j{n}", id=f"j{n}") for n in range(200)]
        engine = asyncio.run(
            run_jobs(tmp_path, gateway, jobs, sink=BUCKET_URL, max_in_flight=5, **SINK_SIMULATOR_OPTIONS)
        )
        assert f"no bucket for {BUCKET_URL}" in str(engine.stopped)
        assert len(gateway.submitted_bodies) < 200
        bucket.reject_status, bucket.after_request = (lambda _: None), (lambda _: None)
        asyncio.run(run_jobs(tmp_path, gateway, jobs, sink=BUCKET_URL, **SINK_SIMULATOR_OPTIONS))
        check_objects(tmp_path, bucket)
        assert len(gateway.submitted_bodies) == 200


def start_run(folder: Path, gateway: str) -> subprocess.Popen[bytes]:
    """Start a run of jobs.jsonl into the bucket."""
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
    """Return a `reject_status` that drops all uploads but the first."""
    first = threading.Lock()
    return lambda request: 0 if request.is_upload and not first.acquire(blocking=False) else None


def kill_after_upload(process: subprocess.Popen[bytes]) -> Callable[[RecordedRequest], None]:
    """Return an `after_request` that kills a process when the server has an image."""

    def kill_process(request: RecordedRequest) -> None:
        if request.is_upload:
            process.kill()
            process.wait(PROCESS_TIMEOUT_S)

    return kill_process


@pytest.mark.slow
class TestCommand:
    def test_simulated_into_a_bucket(self, tmp_path: Path, bucket: S3Server) -> None:
        """`run --simulate` with KREA_BATCH_SINK stores the images in the bucket, and prints its URL but no key."""
        write_jobs(tmp_path / "jobs.jsonl", 6)
        command = ("run", "jobs.jsonl", "--out", "out", "--simulate", "--time-scale", "50", *SINK_RUN_OPTIONS)
        result = run_command(*command, cwd=tmp_path, KREA_BATCH_SINK=BUCKET_URL)
        assert result.returncode == 0, result.stderr
        assert f"images:   {BUCKET_URL}" in result.stdout
        check_objects(tmp_path / "out", bucket)
        assert len(bucket.objects()) == 6
        assert "of-a-key" not in result.stdout + result.stderr

    def test_the_simulators_images(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """Each object has the request_id and prompt of its own job, and the hash in the results."""
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
        """Five kills right after an upload: every image is stored, and every job is charged once."""
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
        _, stderr = last.communicate(timeout=PROCESS_TIMEOUT_S)
        assert last.returncode in (0, 1), stderr
        posts = [post for post in simulator.admin_request("/ledger")["posts"] if post["charged"]]
        charges = Counter(post["body"]["prompt"] for post in posts)
        assert max(charges.values()) == 1
        rows = result_rows(tmp_path / "out")
        ambiguous = [row for row in rows if row["status"] == "ambiguous"]  # killed while POSTs were in flight
        assert all(row["status"] == "succeeded" for row in rows if row not in ambiguous)
        assert len(rows) == 20
        objects = bucket.objects()
        assert len(objects) == 20 - len(ambiguous)
        for row in rows:
            for file in row["files"]:
                data = objects[file["path"].removeprefix(f"s3://{BUCKET}/")]
                assert hashlib.sha256(data).hexdigest() == file["sha256"]

    def test_a_missing_bucket_costs_nothing(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """A missing bucket means exit code 3, a message with the next step, and no POST. The run can be resumed."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        write_jobs(tmp_path / "jobs.jsonl", 5)
        bucket.delete()
        process = start_run(tmp_path, simulator.gateway_url)
        _, stderr = process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 3
        assert f"no bucket for {BUCKET_URL}; create it or fix" in stderr.decode()
        assert not simulator.admin_request("/ledger")["posts"]
        bucket.create()
        process = start_run(tmp_path, simulator.gateway_url)
        _, stderr = process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 0, stderr
        check_objects(tmp_path / "out", bucket)
        assert len([post for post in simulator.admin_request("/ledger")["posts"] if post["charged"]]) == 5
