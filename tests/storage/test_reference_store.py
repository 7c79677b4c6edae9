"""Local reference images reach a real S3 server once, and the gateway gets URLs from which they can be read."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import urllib.request
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from obstore.store import MemoryStore, S3Store

from krea_batch import Engine, ImageStyleReference, Job
from krea_batch.errors import JobError, SettingsError
from krea_batch.pipeline.reference_uploads import MAX_LIFETIME
from krea_batch.rules.verdicts import Refusal, Refused
from krea_batch.storage.reference_files import REFERENCE_FILES
from krea_batch.storage.reference_store import MAX_UPLOADS, ReferenceStore
from krea_batch.storage.sinks import SinkPermanentError
from krea_batch.testing import ACCEPT, ScriptedGateway, make_png
from tests.engine_fixtures import ledger_states, query_ledger, rows_by_id, run_jobs
from tests.processes import PROCESS_TIMEOUT_S, StartSimulator, result_rows, run_command, start_command
from tests.storage.s3_server import BUCKET, DropResponse, RecordedRequest, S3Server

REFERENCES_URL = f"s3://{BUCKET}/refs"
OPTIONS: dict[str, Any] = {"references": REFERENCES_URL, "poll_interval_s": 0.05}
FOX, OWL = make_png(text=b"fox"), make_png(text=b"owl")


def name_of(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()}.png"


def key_of(data: bytes) -> str:
    return f"refs/{name_of(data)}"


def write_job_file(folder: Path, jobs: int = 4) -> None:
    """Write jobs.jsonl whose jobs all have refs/fox.png; every second one has refs/owl.png, too."""
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs/fox.png").write_bytes(FOX)
    (folder / "refs/owl.png").write_bytes(OWL)
    fox, owl = {"image_path": "refs/fox.png", "strength": 0.7}, {"image_path": "refs/owl.png"}
    rows = [
        {"id": f"j{number}", "prompt": f"image {number}", "image_style_references": [fox, owl][: 1 + number % 2]}
        for number in range(jobs)
    ]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_arguments(gateway: str, *options: str) -> tuple[str, ...]:
    settings = ("--rate", "200/s", "--poll-interval", "0.1", "--references", REFERENCES_URL)
    return ("run", "jobs.jsonl", "--out", "out", "--gateway", gateway, *settings, *options)


def get(url: str) -> tuple[bytes, str]:
    """Return the bytes and the type of what a URL of the store on this machine has."""
    with urllib.request.urlopen(url, timeout=PROCESS_TIMEOUT_S) as response:  # noqa: S310 - loopback
        return response.read(), response.headers["Content-Type"]


def charged_posts(simulator: Any) -> list[dict[str, Any]]:
    return [post for post in simulator.admin_request("/ledger")["posts"] if post["charged"]]


def stored_paths(out: Path) -> dict[str, str]:
    """Return the path of the only image of each job, which is there."""
    paths = {row["id"]: row["files"][0]["path"] for row in result_rows(out)}
    assert all((out / path).is_file() for path in paths.values())
    return paths


def job_with(path: Path, job_id: str = "j") -> Job:
    return Job(id=job_id, prompt=job_id, image_style_references=(ImageStyleReference(image_path=str(path)),))


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    path = tmp_path / "fox.png"
    path.write_bytes(FOX)
    return path


class TestCommand:
    def test_the_gateway_can_read_the_images(
        self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator
    ) -> None:
        """Each content is uploaded once. The POSTs have URLs that give its very bytes, for longer than the run."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        write_job_file(tmp_path)
        result = run_command(*run_arguments(simulator.gateway_url), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert sorted(bucket.uploaded_keys()) == sorted([key_of(FOX), key_of(OWL)])
        assert "2 local reference images" in result.stderr
        posts = charged_posts(simulator)
        assert len(posts) == 4
        for post in posts:
            references = post["body"]["image_style_references"]
            assert [get(each["image_url"]) for each in references] == [
                (data, "image/png") for data in (FOX, OWL)[: len(references)]
            ]
            assert references[0]["strength"] == 0.7
            for each in references:
                lifetime_s = int(parse_qs(urlsplit(each["image_url"]).query)["X-Amz-Expires"][0])
                assert lifetime_s == 1800 + 24 * 3600

    def test_no_signature_is_kept(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """Results name the object and the file. No file of the run and no output has a signature."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        write_job_file(tmp_path, 2)
        result = run_command(*run_arguments(simulator.gateway_url, "-vv"), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        row = result_rows(tmp_path / "out")[0]
        (reference,) = row["request"]["image_style_references"]
        assert reference == {"image_url": f"s3://{BUCKET}/{key_of(FOX)}", "strength": 0.7}
        assert row["metadata"] == {REFERENCE_FILES: {name_of(FOX): "refs/fox.png"}}
        assert "Amz" not in result.stdout + result.stderr
        for path in (tmp_path / "out").glob("*.*"):
            assert b"Amz" not in path.read_bytes()

    @pytest.mark.parametrize("arguments", [("plan", "jobs.jsonl"), ("validate", "jobs.jsonl"), ()])
    def test_nothing_is_uploaded_without_a_run(
        self, tmp_path: Path, bucket: S3Server, arguments: tuple[str, ...]
    ) -> None:
        """`plan`, `validate` and `--dry-run` count the images and their bytes, and send no request."""
        write_job_file(tmp_path)
        result = run_command(*(arguments or run_arguments("http://127.0.0.1:9", "--dry-run")), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f"2 local reference images, {len(FOX) + len(OWL)} B" in result.stderr
        assert bucket.requests == []

    def test_without_a_store(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """Without --references, a job file with local images is an error before a request, and its advice works."""
        simulator = simulate("--tiny")
        write_job_file(tmp_path)
        arguments = run_arguments(simulator.gateway_url)
        without = arguments[: arguments.index("--references")]
        for command in (without, (*without, "--dry-run")):
            result = run_command(*command, cwd=tmp_path)
            assert result.returncode == 2
            assert "refs/fox.png is a local reference image" in result.stderr
            assert "add --references s3://bucket/folder" in result.stderr
        assert not simulator.admin_request("/ledger")["posts"]
        assert not (tmp_path / "out").exists()
        advised = run_command(*without, "--references", f"s3://{BUCKET}/folder", cwd=tmp_path)
        assert advised.returncode == 0, advised.stderr

    def test_an_edited_image_is_another_request(
        self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator
    ) -> None:
        """A second run charges nothing, though its URLs would be others. An edited image is refused, by its lines."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        write_job_file(tmp_path)
        arguments = run_arguments(simulator.gateway_url)
        for _ in range(2):
            assert run_command(*arguments, cwd=tmp_path).returncode == 0
        (tmp_path / "refs/owl.png").write_bytes(make_png(text=b"another owl"))
        result = run_command(*arguments, cwd=tmp_path)
        assert result.returncode == 2
        assert 'jobs.jsonl:2: the line or an option changed since its id "j1" was submitted' in result.stderr
        assert "jobs.jsonl:4:" in result.stderr
        assert "jobs.jsonl:1:" not in result.stderr
        assert len(charged_posts(simulator)) == 4
        assert len(bucket.uploaded_keys()) == 2

    def test_killed_between_upload_and_submit(
        self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator
    ) -> None:
        """A process is killed when the store has an image. The next run does not upload it again, and pays once."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        write_job_file(tmp_path)
        arguments = run_arguments(simulator.gateway_url)
        process = start_command(*arguments, cwd=tmp_path)

        def kill(request: RecordedRequest) -> None:
            if request.is_upload and process.poll() is None:
                process.kill()
                process.wait(PROCESS_TIMEOUT_S)

        bucket.after_request = kill
        process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == -signal.SIGKILL
        assert charged_posts(simulator) == []
        bucket.after_request = lambda _: None
        result = run_command(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert Counter(bucket.uploaded_keys()) == {key_of(FOX): 1, key_of(OWL): 1}
        assert Counter(post["body"]["prompt"] for post in charged_posts(simulator)) == {
            f"image {number}": 1 for number in range(4)
        }

    def test_a_missing_bucket_costs_nothing(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """A missing bucket means exit code 3 and no POST. The run can be resumed."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        write_job_file(tmp_path)
        bucket.delete()
        result = run_command(*run_arguments(simulator.gateway_url), cwd=tmp_path)
        assert result.returncode == 3
        assert f"no bucket for {REFERENCES_URL}; create it or fix the references" in result.stdout
        assert not simulator.admin_request("/ledger")["posts"]
        bucket.create()
        assert run_command(*run_arguments(simulator.gateway_url), cwd=tmp_path).returncode == 0
        assert len(charged_posts(simulator)) == 4

    def test_retry(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """`retry` needs the object or the file: a deleted object is uploaded again. Without the store, it stops."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1", "--fault", "job-failed=1")
        write_job_file(tmp_path, 1)
        assert run_command(*run_arguments(simulator.gateway_url), cwd=tmp_path).returncode == 1
        options = ("--gateway", simulator.gateway_url, "--poll-interval", "0.1", "--yes")
        stopped = run_command("retry", "out", *options, cwd=tmp_path)
        assert stopped.returncode == 3
        assert f"run again with references={REFERENCES_URL}" in stopped.stdout
        assert len(charged_posts(simulator)) == 1
        bucket.reset()
        retried = run_command("retry", "out", *options, "--references", REFERENCES_URL, cwd=tmp_path)
        assert retried.returncode == 1, retried.stderr
        posts = charged_posts(simulator)
        assert len(posts) == 2
        assert get(posts[1]["body"]["image_style_references"][0]["image_url"])[0] == FOX

    def test_recover(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """A ledger that is rebuilt from the results knows the requests: the next run charges nothing."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        write_job_file(tmp_path)
        arguments = run_arguments(simulator.gateway_url)
        assert run_command(*arguments, cwd=tmp_path).returncode == 0
        (tmp_path / "out/ledger.db").unlink()
        recovered = run_command("recover", "out", "--yes", cwd=tmp_path)
        assert recovered.returncode == 0, recovered.stderr
        assert run_command(*arguments, cwd=tmp_path).returncode == 0
        assert len(charged_posts(simulator)) == 4

    def test_images_with_names(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """`--name` names images, not requests: a run without it charges nothing. A rebuilt ledger has the names."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        write_job_file(tmp_path)
        arguments = run_arguments(simulator.gateway_url)
        named = run_command(*arguments, "--name", "{creativity}/{prompt}_{id}", cwd=tmp_path)
        assert named.returncode == 0, named.stderr
        paths = {f"j{number}": f"images/medium/image-{number}_j{number}.png" for number in range(4)}
        assert stored_paths(tmp_path / "out") == paths
        assert sorted(bucket.uploaded_keys()) == sorted([key_of(FOX), key_of(OWL)])
        (tmp_path / "out/ledger.db").unlink()
        recovered = run_command("recover", "out", "--yes", cwd=tmp_path)
        assert recovered.returncode == 0, recovered.stderr
        assert "4 jobs to add: 4 succeeded" in recovered.stdout
        assert "of no job in the ledger" not in recovered.stdout
        verified = run_command("verify", "out", "--json", cwd=tmp_path)
        assert verified.returncode == 0, verified.stdout
        assert run_command(*arguments, cwd=tmp_path).returncode == 0
        assert stored_paths(tmp_path / "out") == paths
        assert len(charged_posts(simulator)) == 4
        assert len(bucket.uploaded_keys()) == 2

    def test_a_name_in_doubt(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """A name that cannot be made is an error before an upload; it lists no paths of images as its fields."""
        simulator = simulate("--tiny")
        write_job_file(tmp_path, 1)
        result = run_command(*run_arguments(simulator.gateway_url), "--name", "{place}", cwd=tmp_path)
        assert result.returncode == 2
        fields = "id, prompt, aspect_ratio, creativity"
        assert f'jobs.jsonl:1: no "place" for the name of the image; there are {fields}\n' in result.stderr
        assert bucket.requests == []
        assert not simulator.admin_request("/ledger")["posts"]

    def test_resubmit(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """Jobs that are submitted again by `resolve` have URLs of now, and the objects that the store has."""
        lost = simulate("--tiny", "--latency", "fixed:0.1", "--fault", "submit-lost=1")
        write_job_file(tmp_path, 2)
        stopped = run_command(*run_arguments(lost.gateway_url), "--name", "{prompt}/{id}", cwd=tmp_path)
        assert (stopped.returncode, "2 ambiguous" in stopped.stdout) == (1, True), stopped.stderr
        resolved = run_command("resolve", "out", "--resubmit", cwd=tmp_path)
        assert resolved.stdout.startswith("2 resubmitted, 0 still ambiguous"), resolved.stderr
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        again = run_command(*run_arguments(simulator.gateway_url), cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        posts = charged_posts(simulator)
        assert sorted(post["body"]["prompt"] for post in posts) == ["image 0", "image 1"]
        for post in posts:
            assert get(post["body"]["image_style_references"][0]["image_url"])[0] == FOX
        assert len(bucket.uploaded_keys()) == 2
        assert stored_paths(tmp_path / "out") == {f"j{n}": f"images/image-{n}/j{n}.png" for n in range(2)}

    def test_results_and_exports_are_jobs(self, tmp_path: Path, bucket: S3Server, simulate: StartSimulator) -> None:
        """Results and exports make the same jobs again, with the objects that the store has."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1")
        write_job_file(tmp_path)
        arguments = run_arguments(simulator.gateway_url)
        assert run_command(*arguments, cwd=tmp_path).returncode == 0
        assert run_command("export", "out", "--format", "csv", "--output", "out.csv", cwd=tmp_path).returncode == 0
        (tmp_path / "refs/fox.png").unlink()
        for jobs, out in (("out/results.jsonl", "out"), ("out.csv", "out"), ("out.csv", "again")):
            again = run_command("run", jobs, "--out", out, *arguments[4:], cwd=tmp_path)
            assert again.returncode == 0, again.stderr
        assert len(charged_posts(simulator)) == 8
        assert len(bucket.uploaded_keys()) == 2
        without = run_command("run", "out.csv", "--out", "third", "--gateway", simulator.gateway_url, cwd=tmp_path)
        assert (without.returncode, "add --references" in without.stderr) == (2, True)


class TestEngine:
    def test_a_job_of_the_library(self, tmp_path: Path, bucket: S3Server, fox: Path) -> None:
        """`Job` takes a path, and `Engine` a URL or a store, which may have a prefix of its own."""
        for number, references in enumerate((REFERENCES_URL, ReferenceStore(S3Store(BUCKET, prefix="refs")))):
            gateway = ScriptedGateway()
            asyncio.run(
                run_jobs(tmp_path / str(number), gateway, [job_with(fox)], **OPTIONS | {"references": references})
            )
            (reference,) = gateway.submitted_bodies[0]["image_style_references"]
            assert get(reference["image_url"])[0] == FOX
            (recorded,) = rows_by_id(tmp_path / str(number))["j"]["request"]["image_style_references"]
            assert recorded["image_url"] == f"s3://{BUCKET}/{key_of(FOX)}"
        assert bucket.uploaded_keys() == [key_of(FOX)]

    def test_generate(self, tmp_path: Path, bucket: S3Server, fox: Path) -> None:
        """`generate` uploads the image; the same job again is known, and with an edited image it is an error."""

        async def main() -> None:
            async with Engine(tmp_path / "out", gateway_client=gateway, **OPTIONS) as engine:
                for _ in range(2):
                    assert (await engine.generate(job_with(fox))).succeeded
                fox.write_bytes(OWL)
                with pytest.raises(JobError, match="the job has changed since this id was submitted"):
                    await engine.generate(job_with(fox))

        gateway = ScriptedGateway()
        asyncio.run(main())
        assert len(gateway.submitted_bodies) == 1

    def test_a_file_that_is_missing(self, tmp_path: Path, bucket: S3Server, fox: Path) -> None:
        """The jobs before one whose image is missing are submitted, and the error names the job."""
        gateway = ScriptedGateway()
        jobs = [job_with(fox, "a"), job_with(tmp_path / "missing.png", "b"), job_with(fox, "c")]
        with pytest.raises(JobError, match="job 'b': there is no reference image"):
            asyncio.run(run_jobs(tmp_path / "out", gateway, jobs, **OPTIONS))
        assert gateway.submitted_prompts == ["a"]

    def test_without_a_store(self, tmp_path: Path, fox: Path) -> None:
        """A path without `references` is an error of the job that names the setting."""
        with pytest.raises(JobError, match="set references to an object store"):
            asyncio.run(run_jobs(tmp_path / "out", ScriptedGateway(), [job_with(fox)], poll_interval_s=0.05))

    def test_a_second_submit_has_a_new_signature(self, tmp_path: Path, bucket: S3Server, fox: Path) -> None:
        """A job that is refused for now is signed again, with the same request in the ledger."""
        gateway = ScriptedGateway()
        gateway.submit_script["j"] = [Refused(Refusal.RETRYABLE, 500, "internal error"), ACCEPT]
        asyncio.run(run_jobs(tmp_path / "out", gateway, [job_with(fox)], **OPTIONS))
        assert len(gateway.submitted_bodies) == 2
        for body in gateway.submitted_bodies:
            assert "X-Amz-Signature" in body["image_style_references"][0]["image_url"]
        ((body,),) = query_ledger(tmp_path / "out", "SELECT body FROM jobs")
        assert b"Amz" not in body

    def test_an_enqueued_job_survives_the_process(self, tmp_path: Path, bucket: S3Server, fox: Path) -> None:
        """A job that was recorded but not uploaded is uploaded by the next run, from the path in its metadata."""

        async def enqueue() -> None:
            async with Engine(tmp_path / "out", gateway_client=gateway, **OPTIONS) as engine:
                engine.rate_limiter.controller.pause(asyncio.get_running_loop().time(), 3600)
                await engine.enqueue(job_with(fox))
                engine.abort()

        gateway = ScriptedGateway()
        asyncio.run(enqueue())
        bucket.reset()
        assert ledger_states(tmp_path / "out") == {"j": "pending"}
        asyncio.run(run_jobs(tmp_path / "out", gateway, [], **OPTIONS))
        assert get(gateway.submitted_bodies[0]["image_style_references"][0]["image_url"])[0] == FOX

    def test_an_image_that_changes_before_its_upload(self, tmp_path: Path, bucket: S3Server, fox: Path) -> None:
        """An image that is edited between its check and its upload stops the run, and nothing is charged."""

        def edit(request: RecordedRequest) -> None:
            if request.method == "HEAD":
                fox.write_bytes(OWL)

        bucket.after_request = edit
        gateway = ScriptedGateway()
        engine = asyncio.run(run_jobs(tmp_path / "out", gateway, [job_with(fox)], **OPTIONS))
        assert "has changed since it was checked" in str(engine.stopped)
        assert gateway.submitted_bodies == []
        assert bucket.uploaded_keys() == []

    def test_another_store_is_refused(self, tmp_path: Path, bucket: S3Server, fox: Path) -> None:
        """A pending job whose image is recorded in one store is not submitted with another."""
        gateway = ScriptedGateway()
        gateway.submit_script["j"] = [Refused(Refusal.FATAL, 402, "no balance")]
        asyncio.run(run_jobs(tmp_path / "out", gateway, [job_with(fox)], **OPTIONS))
        engine = asyncio.run(
            run_jobs(tmp_path / "out", gateway, [], **OPTIONS | {"references": f"s3://{BUCKET}/others"})
        )
        assert f"run again with references={REFERENCES_URL}" in str(engine.stopped)
        assert len(gateway.submitted_bodies) == 1


class TestStore:
    def test_uploads_are_bounded(self, tmp_path: Path, bucket: S3Server) -> None:
        """Many images are uploaded at a time, and never more than MAX_UPLOADS."""

        async def upload_all() -> int:
            active = most = 0

            async def read(data: bytes) -> bytes:
                nonlocal active, most
                active += 1
                most = max(most, active)
                await asyncio.sleep(0)
                active -= 1
                return data

            store = ReferenceStore.from_url(REFERENCES_URL)
            images = [make_png(text=str(number).encode()) for number in range(3 * MAX_UPLOADS)]
            await asyncio.gather(*(store.ensure(name_of(data), partial(read, data)) for data in images))
            return most

        assert 1 <= asyncio.run(upload_all()) <= MAX_UPLOADS
        assert len(bucket.objects()) == 3 * MAX_UPLOADS

    def test_a_lost_answer(self, bucket: S3Server) -> None:
        """If the answer to an upload is lost, the image is there once, and that is found out."""
        lost: list[RecordedRequest] = []

        def drop_first(request: RecordedRequest) -> None:
            if request.is_upload and not lost:
                lost.append(request)
                raise DropResponse

        bucket.after_request = drop_first
        asyncio.run(ReferenceStore.from_url(REFERENCES_URL).ensure(name_of(FOX), reader(FOX)))
        assert bucket.objects() == {key_of(FOX): FOX}

    def test_credentials_that_may_not_read(self, bucket: S3Server) -> None:
        """If the credentials may write and not read, the gateway could not read either: this stops the run."""
        bucket.reject_status = lambda request: 403 if request.method == "HEAD" else None
        with pytest.raises(SinkPermanentError, match="allow these credentials to read"):
            asyncio.run(ReferenceStore.from_url(REFERENCES_URL).ensure(name_of(FOX), reader(FOX)))

    def test_an_image_that_is_nowhere(self, bucket: S3Server) -> None:
        """Without the object and without the file, the error names the object."""
        with pytest.raises(SinkPermanentError, match=f"{name_of(FOX)} is not there"):
            asyncio.run(ReferenceStore.from_url(REFERENCES_URL).ensure(name_of(FOX), None))

    def test_a_store_that_cannot_sign(self) -> None:
        """A store without signed URLs is refused when it is opened."""
        with pytest.raises(SettingsError, match="a MemoryStore cannot sign URLs"):
            ReferenceStore(MemoryStore())

    def test_urls_without_tls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only an endpoint on this machine may have HTTP: the API takes HTTPS."""
        store = S3Store(
            BUCKET,
            endpoint="http://store.example",
            access_key_id="a",
            secret_access_key="b",
            region="us-east-1",
            client_options={"allow_http": True},
        )
        with pytest.raises(SinkPermanentError, match="are not https, which the API requires"):
            asyncio.run(ReferenceStore(store).check())

    def test_the_longest_lifetime(self, tmp_path: Path, bucket: S3Server, fox: Path) -> None:
        """A URL is signed for at most seven days, which is the limit of S3."""
        gateway = ScriptedGateway()
        options = OPTIONS | {"job_timeout_s": 30 * 24 * 3600.0}
        asyncio.run(run_jobs(tmp_path / "out", gateway, [job_with(fox)], **options))
        url = gateway.submitted_bodies[0]["image_style_references"][0]["image_url"]
        lifetime = timedelta(seconds=int(parse_qs(urlsplit(url).query)["X-Amz-Expires"][0]))
        assert lifetime == MAX_LIFETIME == timedelta(days=7)


def reader(data: bytes) -> Callable[[], Any]:
    """Return a function that reads an image."""

    async def read() -> bytes:
        return data

    return read
