"""The CDN: full images and ranges, faults, and the content of images."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from krea_batch.testing.simulator.body_validation import CREATIVITY, VALID_ASPECT_RATIOS
from krea_batch.testing.simulator.drawing.images import IMAGE_SIZES, draw
from krea_batch.testing.simulator.drawing.tiny_png import PNG_FILE_SIGNATURE, tiny_image
from tests.processes import PROCESS_TIMEOUT_S
from tests.simulator.simulator_fixture import CAT_BODY, SIMULATOR_KEY, SimulatorClient, run_with_simulator

NO_LATENCY: dict[str, Any] = {"latency": "fixed:0"}
CAPTION_FIELDS = {
    "prompt": "a lighthouse in a storm",
    "seed": "7",
    "aspect_ratio": "3:2",
    "creativity": "medium",
    "request_id": "r-1",
    "output": "1",
}


def open_verified(data: bytes) -> Image.Image:
    """Return the image, after Pillow has verified every chunk and decoded every pixel."""
    with Image.open(BytesIO(data)) as verified:
        assert verified.format == "PNG"
        verified.verify()
    image = Image.open(BytesIO(data))
    image.load()
    return image


def pixels(data: bytes) -> bytes:
    image = open_verified(data)
    return repr(image.size).encode() + image.tobytes()


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a PNG, and check their checksums."""
    assert png.startswith(PNG_FILE_SIGNATURE)
    position, all_chunks = len(PNG_FILE_SIGNATURE), []
    while position < len(png):
        length, chunk_type = struct.unpack_from(">I4s", png, position)
        data = png[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", png, position + 8 + length) == (zlib.crc32(chunk_type + data),)
        all_chunks.append((chunk_type, data))
        position += length + 12
    assert position == len(png)
    assert all_chunks[0][0] == b"IHDR"
    assert all_chunks[-1] == (b"IEND", b"")
    return all_chunks


def ratio(text: str) -> float:
    across, down = text.split(":")
    return float(across) / float(down)


# ---- full images and ranges -----------------------------------------------------------------------------


def test_a_complete_image() -> None:
    """A GET returns the PNG with its length, type and a quoted ETag, the same each time, and is counted."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        first, second = await client.get(url), await client.get(url)
        assert (first.status, first.headers["content-type"]) == (200, "image/png")
        assert first.headers["content-length"] == str(len(first.body))
        assert first.headers["accept-ranges"] == "bytes"
        assert first.headers["etag"].startswith('"')
        assert first.headers["etag"].endswith('"')
        assert "content-range" not in first.headers
        assert (second.body, second.headers["etag"]) == (first.body, first.headers["etag"])
        open_verified(first.body)
        totals = client.totals()
        assert (totals["downloads"], totals["bytes"]) == (2, 2 * len(first.body))
        assert totals["cdn_requests"] == 2
        assert client.posts()[0]["job"]["download_requests"] == 2

    run_with_simulator(ask, **NO_LATENCY)


def test_head() -> None:
    """A HEAD returns the headers of the GET without a body, and is not counted as a download."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        head, full = await client.get(url, "HEAD"), await client.get(url)
        assert (head.status, head.body) == (200, b"")
        for name in ("content-length", "content-type", "etag", "accept-ranges"):
            assert head.headers[name] == full.headers[name]
        assert client.totals()["downloads"] == 1
        part = await client.get(url, "HEAD", Range="bytes=5-9")
        assert (part.status, part.headers["content-length"], part.body) == (206, "5", b"")

    run_with_simulator(ask, **NO_LATENCY)


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=100-", 100, 5000),
        ("bytes=4999-", 4999, 5000),
        ("bytes=4990-99999", 4990, 5000),
        ("bytes=-8", 4992, 5000),
    ],
)
def test_a_range(asked: str, start: int, stop: int) -> None:
    """A range returns 206 with those bytes of the image and their Content-Range, and they are counted."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        full = (await client.get(url)).body
        part = await client.get(url, Range=asked)
        assert part.status == 206
        assert part.body == full[start:stop]
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/5000"
        assert part.headers["content-length"] == str(stop - start)
        assert part.headers["content-type"] == "image/png"
        assert client.totals()["bytes"] == 5000 + stop - start

    run_with_simulator(ask, **NO_LATENCY, image_bytes=5000)


@pytest.mark.parametrize(
    "asked", ["bytes=0-", "bytes=0-4999", "bytes=9-5", "bytes=0-5,9-12", "bytes=-", "pages=1-2", "bytes=-9999", "x"]
)
def test_ranges_that_return_the_full_image(asked: str) -> None:
    """A range of everything, of several parts, or an invalid one returns the full image with 200."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.get(client.image_url(await client.submit_accepted()), Range=asked)
        assert (response.status, len(response.body)) == (200, 5000)

    run_with_simulator(ask, **NO_LATENCY, image_bytes=5000)


def test_a_range_with_thousands_of_digits() -> None:
    """A range with thousands of digits gets a response that RFC 9110 allows."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        for asked in ("bytes=" + "9" * 5000 + "-", "bytes=0-" + "9" * 5000, "bytes=-" + "9" * 5000):
            assert (await client.get(url, Range=asked)).status in (200, 206, 416)

    run_with_simulator(ask, **NO_LATENCY)


@pytest.mark.parametrize("asked", ["bytes=5000-", "bytes=9999-10000", "bytes=-0"])
def test_a_range_after_the_end(asked: str) -> None:
    """A range after the last byte is a 416 with the length."""

    async def ask(client: SimulatorClient) -> None:
        response = await client.get(client.image_url(await client.submit_accepted()), Range=asked)
        assert (response.status, response.body) == (416, b"")
        assert response.headers["content-range"] == "bytes */5000"
        assert client.totals()["downloads"] == 0

    run_with_simulator(ask, **NO_LATENCY, image_bytes=5000)


def test_if_range() -> None:
    """With If-Range the range is sent if the ETag matches, or else the full image."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        full = await client.get(url)
        etag = full.headers["etag"]
        same = await client.get(url, Range="bytes=7-", If_Range=etag)
        assert (same.status, same.body) == (206, full.body[7:])
        for other in ('"another"', f"W/{etag}", "Tue, 31 Mar 2026 10:00:00 GMT"):
            response = await client.get(url, Range="bytes=7-", If_Range=other)
            assert (response.status, response.body) == (200, full.body)
        assert (await client.get(url, Range="bytes=99999999-", If_Range='"another"')).status == 200

    run_with_simulator(ask, **NO_LATENCY)


def test_several_outputs() -> None:
    """A job with four outputs has four URLs, four different images, and four ETags."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted(CAT_BODY | {"seed": 3})
        urls = (await client.poll(request_id)).json["output"]["media_url"]
        names = ["output.png", "output-2.png", "output-3.png", "output-4.png"]
        assert urls == [client.image_url(request_id, name) for name in names]
        responses = [await client.get(url) for url in urls]
        assert {response.status for response in responses} == {200}
        assert len({response.headers["etag"] for response in responses}) == 4
        assert len({pixels(response.body) for response in responses}) == 4
        assert [open_verified(response.body).info["output"] for response in responses] == ["1", "2", "3", "4"]
        assert client.posts()[0]["job"]["download_requests"] == 4

    run_with_simulator(ask, **NO_LATENCY, outputs=4)


@pytest.mark.parametrize("name", ["output-2.png", "output-1.png", "output-5.png", "output.jpg", "Output.png", "x"])
def test_names_no_image_has(name: str) -> None:
    """A job with one output has one URL; other names are a 404."""

    async def ask(client: SimulatorClient) -> None:
        assert (await client.get(client.image_url(await client.submit_accepted(), name))).status == 404

    run_with_simulator(ask, **NO_LATENCY)


def test_no_image_before_its_job_is_completed() -> None:
    """The URL of an image is a 404 while its job is QUEUED or PROCESSING, and works when it is COMPLETED."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        statuses = []
        for seconds in (0, 14.9, 0.1):
            client.clock.at += seconds
            statuses.append((await client.get(url)).status)
        assert statuses == [404, 404, 200]

    run_with_simulator(ask)


@pytest.mark.parametrize("fault", ["job-failed", "job-error"])
def test_no_image_of_a_failed_job(fault: str) -> None:
    """A job that ended FAILED or ERROR has no image."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        client.clock.at += 60
        assert (await client.get(client.image_url(request_id))).status == 404

    run_with_simulator(ask, faults={fault: 1.0})


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/v1/none/output.png"), ("POST", "/v1/a/output.png"), ("GET", "/v1")]
)
def test_other_urls_of_the_cdn(method: str, path: str) -> None:
    """Any other URL of the CDN is a 404, and the request is counted."""

    async def ask(client: SimulatorClient) -> None:
        assert (await client.get(client.cdn + path, method)).status == 404
        assert client.totals()["cdn_requests"] == 1
        assert client.totals()["downloads"] == 0

    run_with_simulator(ask)


def test_a_key_at_the_cdn_is_counted() -> None:
    """The CDN needs no key, and requests with a key are counted, at any URL."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        assert (await client.get(url)).status == 200
        assert client.totals()["cdn_with_key"] == 0
        assert (await client.get(url, Ocp_Apim_Subscription_Key=SIMULATOR_KEY)).status == 200
        assert (await client.get(client.cdn + "/elsewhere", ocp_apim_subscription_key="")).status == 404
        assert client.totals()["cdn_with_key"] == 2
        assert client.totals()["cdn_requests"] == 3

    run_with_simulator(ask, **NO_LATENCY)


# ---- faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("cdn-404", 404, "application/json"),
        ("cdn-503", 503, "application/json"),
        ("cdn-html", 200, "text/html"),
        ("cdn-cut", 200, "image/png"),
        ("cdn-corrupt", 200, "image/png"),
        ("cdn-trailing", 200, "image/png"),
        ("cdn-jpeg", 200, "image/jpeg"),
        ("cdn-slow", 200, "image/png"),
    ],
)
def test_faults_of_the_cdn(fault: str, status: int, kind: str) -> None:
    """A fault damages one download as its name says, and the next download is correct."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        damaged, correct = await client.get(url), await client.get(url)
        assert (correct.status, len(correct.body)) == (200, 50_000)
        open_verified(correct.body)
        assert (damaged.status, damaged.headers["content-type"].split(";")[0]) == (status, kind)
        assert damaged.complete == (fault != "cdn-cut")
        match fault:
            case "cdn-cut":
                assert damaged.headers["content-length"] == "50000"
                assert damaged.body == correct.body[:25_000]
            case "cdn-corrupt":
                changed = [n for n, (a, b) in enumerate(zip(damaged.body, correct.body, strict=True)) if a != b]
                assert changed == [25_000]
                with pytest.raises(Exception, match=r"broken PNG|bad header checksum|CRC"):
                    open_verified(damaged.body)
            case "cdn-trailing":
                assert damaged.body.startswith(correct.body)
                assert len(damaged.body) > len(correct.body)
                assert damaged.headers["content-length"] == str(len(damaged.body))
            case "cdn-jpeg":
                with Image.open(BytesIO(damaged.body)) as jpeg, Image.open(BytesIO(correct.body)) as png:
                    assert (jpeg.format, jpeg.size) == ("JPEG", png.size)
            case "cdn-slow":
                assert damaged.body == correct.body
            case "cdn-html":
                assert damaged.body.startswith(b"<html>")
            case _:
                assert damaged.json["error"]
        complete = 2 if fault in ("cdn-corrupt", "cdn-trailing", "cdn-jpeg", "cdn-slow") else 1
        assert client.totals()["downloads"] == complete

    run_with_simulator(
        ask, **NO_LATENCY, image_bytes=50_000, faults={fault: 1.0}, fault_max_attempts=1, slow_duration_s=0.0
    )


def test_a_cut_download_can_be_resumed() -> None:
    """A cut download can be completed with range requests, although these are cut as well."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        first = await client.get(url)
        got = first.body
        while len(got) < 50_000:
            part = await client.get(url, Range=f"bytes={len(got)}-", If_Range=first.headers["etag"])
            assert part.status == 206
            got += part.body
        open_verified(got)
        assert client.posts()[0]["job"]["download_requests"] == 4
        assert client.totals()["bytes"] == 50_000

    run_with_simulator(ask, **NO_LATENCY, image_bytes=50_000, faults={"cdn-cut": 1.0}, fault_max_attempts=3)


def test_faults_are_drawn_for_each_output() -> None:
    """With fault_max_attempts=1 the first download of each output fails, in whatever order they are requested."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        one, two = client.image_url(request_id), client.image_url(request_id, "output-2.png")
        assert [(await client.get(url)).status for url in (one, one, two, one, two)] == [503, 200, 503, 200, 200]

    run_with_simulator(ask, **NO_LATENCY, outputs=2, faults={"cdn-503": 1.0}, fault_max_attempts=1)


# ---- drawn images ---------------------------------------------------------------------------------------


def test_a_drawn_image_shows_its_job() -> None:
    """A drawn image opens in Pillow and contains the prompt, the parameters and the request_id."""
    prompt = "Zwölf Boxkämpfer — 猫 🐈 \u0007"

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted({"prompt": prompt, "seed": 2**70, "creativity": "high"})
        response = await client.get(client.image_url(request_id))
        image = open_verified(response.body)
        assert (image.size, image.mode) == ((1024, 1024), "RGB")
        assert image.info == {
            "prompt": prompt,
            "seed": str(2**70),
            "aspect_ratio": "1:1",
            "creativity": "high",
            "request_id": request_id,
            "output": "1",
        }
        assert len(image.getcolors(1 << 20) or ()) > 1000

    run_with_simulator(ask, **NO_LATENCY, tiny=False)


def test_sizes_are_about_a_megapixel_and_keep_their_ratio() -> None:
    """Each ratio of the API document has a size within one percent of it and of about a million pixels."""
    assert set(IMAGE_SIZES) == set(VALID_ASPECT_RATIOS)
    for text, (width, height) in IMAGE_SIZES.items():
        assert width / height == pytest.approx(ratio(text), rel=0.01)
        assert width * height == pytest.approx(1e6, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("aspect_ratio", VALID_ASPECT_RATIOS)
def test_each_ratio_as_drawn(aspect_ratio: str) -> None:
    """A downloaded image has the ratio of its job within one percent."""

    async def ask(client: SimulatorClient) -> None:
        width, height = open_verified(await client.download_image(CAT_BODY | {"aspect_ratio": aspect_ratio})).size
        assert width / height == pytest.approx(ratio(aspect_ratio), rel=0.01)

    run_with_simulator(ask, **NO_LATENCY, tiny=False)


@pytest.mark.slow
def test_the_same_body_and_seed_give_the_same_pixels() -> None:
    """Two jobs with the same body and seed have the same image, also on another simulator; others differ."""

    async def ask(client: SimulatorClient) -> list[bytes]:
        bodies = [
            CAT_BODY | {"seed": 1},
            CAT_BODY | {"seed": 1},
            CAT_BODY | {"seed": 2},
            {"prompt": "a dog", "seed": 1},
        ]
        return [pixels(await client.download_image(body)) for body in bodies]

    first, repeated, other_seed, other_prompt = run_with_simulator(ask, **NO_LATENCY, tiny=False)
    assert first == repeated
    assert len({first, other_seed, other_prompt}) == 3
    assert run_with_simulator(ask, **NO_LATENCY, tiny=False, seed=5)[0] == first


@pytest.mark.slow
def test_parameters_change_the_image() -> None:
    """A different creativity or output index of the same job gives a different image."""
    images = {pixels(draw(CAPTION_FIELDS | {"creativity": creativity}, "7")) for creativity in CREATIVITY}
    assert len(images | {pixels(draw(CAPTION_FIELDS, "8"))}) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "prompt",
    [
        "x",
        "word " * 2000,
        "w" * 5000,
        "猫" * 500,
        "🐈‍⬛ 👩🏽‍🚀 \u200d\ufe0f",
        "\x00\x01\x7f\u202e\u2028",
        "{} %s \\n <b>&amp;</b>",
        "שלום عالم",
        "mountain desert sea city gogh map tile wind cat planet",
        "paper agate marble cut",
        "bauhaus mosaic quilt",
        "silk smoke dancer",
        "watercolour of fruit",
        "galaxy with a rocket",
        "starry portrait in oil",
        "neon towers of tokyo",
        "snowy pyramids",
        "a whale below the ship",
    ],
)
def test_any_prompt_can_be_drawn(prompt: str) -> None:
    """Any prompt can be drawn, and its image contains it exactly."""
    image = open_verified(
        draw(CAPTION_FIELDS | {"prompt": prompt, "aspect_ratio": "2.35:1", "creativity": "high"}, "1")
    )
    assert image.info["prompt"] == prompt
    assert image.size == IMAGE_SIZES["2.35:1"]


@pytest.mark.slow
def test_images_are_the_same_in_every_process() -> None:
    """Drawn, tiny and noise images are the same bytes in processes with different hash seeds."""
    program = (
        "import hashlib, sys, ast\n"
        "from krea_batch.testing.simulator.drawing.images import draw\n"
        "from krea_batch.testing.simulator.drawing.tiny_png import tiny_image\n"
        "text = ast.literal_eval(sys.argv[1])\n"
        "made = draw(text, '7') + tiny_image(text, '7') + tiny_image(text, '7', 9999)\n"
        "print(hashlib.sha256(made).hexdigest())\n"
    )
    text = CAPTION_FIELDS | {"prompt": "a sea of stars, a city and a cat in the wind"}
    made = draw(text, "7") + tiny_image(text, "7") + tiny_image(text, "7", 9999)
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", program, repr(text)],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=PROCESS_TIMEOUT_S,
        )
        assert run.stdout.strip() == hashlib.sha256(made).hexdigest(), run.stderr


# ---- tiny images ----------------------------------------------------------------------------------------


def test_a_tiny_image() -> None:
    """With `tiny` an image is a few hundred bytes, valid, and contains the same texts as a drawn one."""

    async def ask(client: SimulatorClient) -> None:
        data = await client.download_image(CAT_BODY | {"aspect_ratio": "9:16"})
        assert len(data) < 1000
        image = open_verified(data)
        assert image.info["prompt"] == "a cat"
        assert image.info["request_id"] == client.posts()[0]["request_id"]
        assert image.size == (14, 24)

    run_with_simulator(ask, **NO_LATENCY)


def test_tiny_ratios_are_distinguishable() -> None:
    """The eight ratios have eight tiny sizes, in the same order."""
    sizes = {
        text: open_verified(tiny_image(CAPTION_FIELDS | {"aspect_ratio": text}, "1")).size
        for text in VALID_ASPECT_RATIOS
    }
    assert len(set(sizes.values())) == 8
    in_order = sorted(VALID_ASPECT_RATIOS, key=ratio)
    assert sorted(VALID_ASPECT_RATIOS, key=lambda text: sizes[text][0] / sizes[text][1]) == in_order


def test_tiny_colours_come_from_prompt_and_seed() -> None:
    """The same body and seed give the same tiny image; a different prompt or seed gives a different one."""

    async def ask(client: SimulatorClient) -> None:
        bodies = [
            CAT_BODY | {"seed": 1},
            CAT_BODY | {"seed": 1},
            CAT_BODY | {"seed": 2},
            {"prompt": "a dog", "seed": 1},
        ]
        first, repeated, *others = [pixels(await client.download_image(body)) for body in bodies]
        assert first == repeated
        assert len({first, *others}) == 3

    run_with_simulator(ask, **NO_LATENCY)


def test_without_a_seed_each_job_makes_its_own_image() -> None:
    """Two jobs with the same body and no seed differ, and a simulator with the same seed repeats both."""

    async def ask(client: SimulatorClient) -> list[bytes]:
        return [pixels(await client.download_image()) for _ in range(2)]

    first, second = run_with_simulator(ask, **NO_LATENCY)
    assert first != second
    assert run_with_simulator(ask, **NO_LATENCY) == [first, second]
    assert first not in run_with_simulator(ask, **NO_LATENCY, seed=1)


@pytest.mark.parametrize("size", [4096, 5000, 65_536, 65_537, 300_000])
def test_an_image_of_exactly_n_bytes(size: int) -> None:
    """With `image_bytes` an image has exactly that size, opens, and does not compress well."""

    async def ask(client: SimulatorClient) -> None:
        data = await client.download_image()
        assert len(data) == size
        assert open_verified(data).info["prompt"] == "a cat"
        assert len(zlib.compress(data)) > size * 0.7

    run_with_simulator(ask, **NO_LATENCY, image_bytes=size)


@settings(deadline=None, max_examples=150)
@given(
    size=st.integers(4096, 120_000),
    aspect_ratio=st.sampled_from(VALID_ASPECT_RATIOS),
    prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    seed_key=st.text(max_size=8),
)
def test_image_bytes_are_exact(size: int, aspect_ratio: str, prompt: str, seed_key: str) -> None:
    """For any size and text a padded image has exactly that size, correct chunks, and the ratio."""
    text = CAPTION_FIELDS | {"aspect_ratio": aspect_ratio, "prompt": prompt}
    image_data = tiny_image(text, seed_key, size)
    assert len(image_data) == size
    png_chunks = chunks(image_data)
    width, height = struct.unpack(">II", png_chunks[0][1][:8])
    assert abs(width - height * ratio(aspect_ratio)) <= 0.5
    rows = zlib.decompress(b"".join(data for kind, data in png_chunks if kind == b"IDAT"))
    assert len(rows) == (width * 3 + 1) * height
    assert set(rows[:: width * 3 + 1]) == {0}
    texts = dict(data.split(b"\0\0\0\0\0", 1) for kind, data in png_chunks if kind == b"iTXt")
    assert texts[b"prompt"].decode() == prompt


def test_a_prompt_too_long_for_its_size() -> None:
    """A prompt that is longer than the size allows is still contained completely."""
    prompt = "long " * 2000
    image_data = tiny_image(CAPTION_FIELDS | {"prompt": prompt}, "1", 4096)
    assert open_verified(image_data).info["prompt"] == prompt
