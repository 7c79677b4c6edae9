"""Test storage.reference_files: which local images can be uploaded, and what identifies a request with them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from krea_batch.errors import JobError
from krea_batch.gateway import wire
from krea_batch.jobs import FileReference, ImageStyleReference, Job, convert_job, validate_job
from krea_batch.storage.reference_files import (
    MAX_REFERENCE_BYTES,
    REFERENCE_FILES,
    read_reference,
    read_unchanged,
    with_contents,
)
from krea_batch.testing import make_png

IMAGES = {
    ".png": make_png(text=b"fox"),
    ".jpg": b"\xff\xd8\xff\xe0" + b"\0" * 40,
    ".webp": b"RIFF\x20\0\0\0WEBPVP8 " + b"\0" * 40,
}


def job_with(path: Path, **fields: object) -> Job:
    """Return a job with one local reference image whose content was read."""
    job = Job(prompt="a fox", image_style_references=(ImageStyleReference(image_path=str(path), strength=0.7),))
    return with_contents(msgspec.structs.replace(job, **fields), read_reference)


class TestReading:
    @pytest.mark.parametrize("extension", IMAGES)
    def test_the_name_is_of_the_content(self, tmp_path: Path, extension: str) -> None:
        """The name of an image is its SHA-256 and the extension of its type, whatever the file is called."""
        path = tmp_path / "fox.dat"
        path.write_bytes(IMAGES[extension])
        file = read_reference(str(path))
        assert file.name == hashlib.sha256(IMAGES[extension]).hexdigest() + extension
        assert file.size_bytes == len(IMAGES[extension])
        assert read_unchanged(file.path, file.name) == IMAGES[extension]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [(b"", "is empty"), (b"a text", "is not an image"), (b"GIF89a" + b"\0" * 20, "is of the type image/gif")],
    )
    def test_what_is_no_image(self, tmp_path: Path, content: bytes, problem: str) -> None:
        """A file of another type is refused, and the error says which types are read."""
        (tmp_path / "fox.png").write_bytes(content)
        with pytest.raises(JobError, match=rf"fox\.png' {problem}; use a PNG, JPEG or WebP file"):
            read_reference(str(tmp_path / "fox.png"))

    def test_a_file_that_is_too_large(self, tmp_path: Path) -> None:
        """The largest image is read, and one byte more is refused."""
        with (tmp_path / "fox.png").open("wb") as file:
            file.write(IMAGES[".png"])
            file.truncate(MAX_REFERENCE_BYTES)
            assert read_reference(file.name).size_bytes == MAX_REFERENCE_BYTES
            file.truncate(MAX_REFERENCE_BYTES + 1)
            with pytest.raises(JobError, match="is larger than 32 MiB"):
                read_reference(file.name)

    def test_what_is_no_regular_file(self, tmp_path: Path) -> None:
        """A missing file, a directory, and a pipe that has no writer are errors; none of them is waited for."""
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(JobError, match="there is no reference image"):
            read_reference(str(tmp_path / "missing.png"))
        for path in (tmp_path, tmp_path / "pipe"):
            with pytest.raises(JobError, match="not a regular file"):
                read_reference(str(path))

    def test_a_file_that_changes(self, tmp_path: Path) -> None:
        """Other bytes than those that were checked are not uploaded."""
        path = tmp_path / "fox.png"
        path.write_bytes(IMAGES[".png"])
        file = read_reference(str(path))
        path.write_bytes(make_png(text=b"owl"))
        with pytest.raises(JobError, match="has changed since it was checked"):
            read_unchanged(file.path, file.name)


class TestRequests:
    def test_equal_contents_are_equal_requests(self, tmp_path: Path) -> None:
        """Neither the path nor the object store is part of a request; the content of the image is."""
        for name, text in (("a.png", b"fox"), ("b.png", b"fox"), ("c.png", b"owl")):
            (tmp_path / name).write_bytes(make_png(text=text))
        a, b, c = (job_with(tmp_path / name) for name in ("a.png", "b.png", "c.png"))
        assert wire.fingerprint(a) == wire.fingerprint(b) != wire.fingerprint(c)
        for base_url in ("s3://bucket/", "s3://bucket/refs/", "az://account/container/ä/"):
            body = wire.with_object_urls(wire.encode_body(a), base_url)
            assert wire.fingerprint_of(body) == wire.fingerprint(a)
            name = a.image_style_references[0].image_url.removeprefix("sha256:")
            assert wire.object_names(body) == {name: base_url + name}

    def test_only_local_images_are_replaced(self, tmp_path: Path) -> None:
        """HTTPS URLs, and a prompt that looks like a reference, are sent as they are."""
        (tmp_path / "fox.png").write_bytes(IMAGES[".png"])
        (local,) = job_with(tmp_path / "fox.png").image_style_references
        assert isinstance(local, FileReference)
        remote = ImageStyleReference(f"https://example.com/{local.name}")
        prompt = f'a fox "image_url":"s3://bucket/{local.name}"'
        body = wire.encode_body(Job(prompt=prompt, image_style_references=(remote, local)))
        sent = msgspec.json.decode(wire.with_signed_urls(body, {local.name: "https://signed/?a=b&c=\u00e4"}))
        assert sent["prompt"] == prompt
        assert [each["image_url"] for each in sent["image_style_references"]] == [
            remote.image_url,
            "https://signed/?a=b&c=ä",
        ]

    def test_the_paths_are_in_the_metadata(self, tmp_path: Path) -> None:
        """The metadata names the file of each content, and keeps the user's own entries."""
        (tmp_path / "fox.png").write_bytes(IMAGES[".png"])
        job = job_with(tmp_path / "fox.png", metadata={"page": 12})
        name = hashlib.sha256(IMAGES[".png"]).hexdigest() + ".png"
        assert job.metadata == {"page": 12, REFERENCE_FILES: {name: str(tmp_path / "fox.png")}}

    def test_a_job_that_was_read_is_valid(self, tmp_path: Path) -> None:
        """A job whose images were read passes the check of the library, which changes nothing."""
        (tmp_path / "fox.png").write_bytes(IMAGES[".png"])
        job = job_with(tmp_path / "fox.png")
        assert validate_job(job) == job

    def test_a_recorded_request_is_the_same_job(self, tmp_path: Path) -> None:
        """The URL that is recorded for a local image makes the same request again, and other fields are checked."""
        (tmp_path / "fox.png").write_bytes(IMAGES[".png"])
        job = job_with(tmp_path / "fox.png")
        body = wire.with_object_urls(wire.encode_body(job), "s3://bucket/refs/")
        assert wire.fingerprint(convert_job(msgspec.json.decode(body))) == wire.fingerprint(job)
        with pytest.raises(msgspec.ValidationError, match="strength"):
            convert_job(msgspec.json.decode(body.replace(b"0.7", b'"much"')))

    @pytest.mark.parametrize(
        "reference",
        [
            {},
            {"image_url": ""},
            {"image_url": "https://a.b/c.png", "image_path": "c.png"},
            {"image_path": " "},
            {"image_path": "a\0b"},
            {"image_url": f"sha256:{'0' * 64}.png"},
            {"image_url": f"s3://bucket/{'0' * 64}.png"},
        ],
    )
    def test_references_that_are_not_valid(self, reference: dict[str, str]) -> None:
        """A reference has either an HTTPS URL or a path."""
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(reference, ImageStyleReference)
