"""The CDN: whole images and parts of them, faults, and what the images are."""

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
    """The image, after Pillow has verified each chunk and decoded each pixel."""
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
    """A PNG's chunks, each with a checksum that is right."""
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


# ---- whole images and parts ----------------------------------------------------------------------------


def test_a_complete_image() -> None:
    """A GET gives the whole PNG with its length, type and an ETag in quotes, the same each time, and is counted."""

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
    """A HEAD gives the headers of the GET and no byte, and is no download."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        head, whole = await client.get(url, "HEAD"), await client.get(url)
        assert (head.status, head.body) == (200, b"")
        for name in ("content-length", "content-type", "etag", "accept-ranges"):
            assert head.headers[name] == whole.headers[name]
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
    """A range gives 206 with those bytes of the image, says which they are, and counts them."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        whole = (await client.get(url)).body
        part = await client.get(url, Range=asked)
        assert part.status == 206
        assert part.body == whole[start:stop]
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/5000"
        assert part.headers["content-length"] == str(stop - start)
        assert part.headers["content-type"] == "image/png"
        assert client.totals()["bytes"] == 5000 + stop - start

    run_with_simulator(ask, **NO_LATENCY, image_bytes=5000)


@pytest.mark.parametrize(
    "asked", ["bytes=0-", "bytes=0-4999", "bytes=9-5", "bytes=0-5,9-12", "bytes=-", "pages=1-2", "bytes=-9999", "x"]
)
def test_a_range_that_is_the_whole(asked: str) -> None:
    """A range of everything, of several parts, or without a meaning gives the whole image with 200."""

    async def ask(client: SimulatorClient) -> None:
        answer = await client.get(client.image_url(await client.submit_accepted()), Range=asked)
        assert (answer.status, len(answer.body)) == (200, 5000)

    run_with_simulator(ask, **NO_LATENCY, image_bytes=5000)


def test_a_range_of_more_digits_than_a_number_has() -> None:
    """Even a range of thousands of digits gets an answer that RFC 9110 knows."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        for asked in ("bytes=" + "9" * 5000 + "-", "bytes=0-" + "9" * 5000, "bytes=-" + "9" * 5000):
            assert (await client.get(url, Range=asked)).status in (200, 206, 416)

    run_with_simulator(ask, **NO_LATENCY)


@pytest.mark.parametrize("asked", ["bytes=5000-", "bytes=9999-10000", "bytes=-0"])
def test_a_range_behind_the_end(asked: str) -> None:
    """A range that lies behind the last byte is a 416 which tells the length."""

    async def ask(client: SimulatorClient) -> None:
        answer = await client.get(client.image_url(await client.submit_accepted()), Range=asked)
        assert (answer.status, answer.body) == (416, b"")
        assert answer.headers["content-range"] == "bytes */5000"
        assert client.totals()["downloads"] == 0

    run_with_simulator(ask, **NO_LATENCY, image_bytes=5000)


def test_if_range() -> None:
    """With If-Range a part is sent where the ETag is that of the image, else the whole."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        whole = await client.get(url)
        etag = whole.headers["etag"]
        same = await client.get(url, Range="bytes=7-", If_Range=etag)
        assert (same.status, same.body) == (206, whole.body[7:])
        for other in ('"another"', f"W/{etag}", "Tue, 31 Mar 2026 10:00:00 GMT"):
            answer = await client.get(url, Range="bytes=7-", If_Range=other)
            assert (answer.status, answer.body) == (200, whole.body)
        assert (await client.get(url, Range="bytes=99999999-", If_Range='"another"')).status == 200

    run_with_simulator(ask, **NO_LATENCY)


def test_several_outputs() -> None:
    """A job of four outputs has four addresses, four images that differ, and four ETags."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted(CAT_BODY | {"seed": 3})
        urls = (await client.poll(request_id)).json["output"]["media_url"]
        names = ["output.png", "output-2.png", "output-3.png", "output-4.png"]
        assert urls == [client.image_url(request_id, name) for name in names]
        answers = [await client.get(url) for url in urls]
        assert {answer.status for answer in answers} == {200}
        assert len({answer.headers["etag"] for answer in answers}) == 4
        assert len({pixels(answer.body) for answer in answers}) == 4
        assert [open_verified(answer.body).info["output"] for answer in answers] == ["1", "2", "3", "4"]
        assert client.posts()[0]["job"]["download_requests"] == 4

    run_with_simulator(ask, **NO_LATENCY, outputs=4)


@pytest.mark.parametrize("name", ["output-2.png", "output-1.png", "output-5.png", "output.jpg", "Output.png", "x"])
def test_names_no_image_has(name: str) -> None:
    """A job of one output has one address."""

    async def ask(client: SimulatorClient) -> None:
        assert (await client.get(client.image_url(await client.submit_accepted(), name))).status == 404

    run_with_simulator(ask, **NO_LATENCY)


def test_no_image_before_its_job_is_done() -> None:
    """An address is a 404 while its job is QUEUED or PROCESSING, and an image as soon as it is COMPLETED."""

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
    """A job that FAILED or came to ERROR has no image."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        client.clock.at += 60
        assert (await client.get(client.image_url(request_id))).status == 404

    run_with_simulator(ask, faults={fault: 1.0})


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/v1/nobody/output.png"), ("POST", "/v1/a/output.png"), ("GET", "/v1")]
)
def test_other_addresses_of_the_cdn(method: str, path: str) -> None:
    """Any other address of the CDN is a 404, and the request is counted all the same."""

    async def ask(client: SimulatorClient) -> None:
        assert (await client.get(client.cdn + path, method)).status == 404
        assert client.totals()["cdn_requests"] == 1
        assert client.totals()["downloads"] == 0

    run_with_simulator(ask)


def test_a_key_at_the_cdn_is_counted() -> None:
    """The CDN wants no key, and the books tell how often one was shown to it, at whatever address."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        assert (await client.get(url)).status == 200
        assert client.totals()["cdn_with_key"] == 0
        assert (await client.get(url, Ocp_Apim_Subscription_Key=SIMULATOR_KEY)).status == 200
        assert (await client.get(client.cdn + "/elsewhere", ocp_apim_subscription_key="")).status == 404
        assert client.totals()["cdn_with_key"] == 2
        assert client.totals()["cdn_requests"] == 3

    run_with_simulator(ask, **NO_LATENCY)


# ---- faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("cdn-404", 404, "application/json"),
        ("cdn-503", 503, "application/json"),
        ("cdn-html", 200, "text/html"),
        ("cdn-cut", 200, "image/png"),
        ("cdn-corrupt", 200, "image/png"),
        ("cdn-trailing", 200, "image/png"),
        ("cdn-slow", 200, "image/png"),
    ],
)
def test_faults_of_the_cdn(fault: str, status: int, kind: str) -> None:
    """A fault spoils a download as it is named, and the next one is the image."""

    async def ask(client: SimulatorClient) -> None:
        url = client.image_url(await client.submit_accepted())
        spoiled, good = await client.get(url), await client.get(url)
        assert (good.status, len(good.body)) == (200, 50_000)
        open_verified(good.body)
        assert (spoiled.status, spoiled.headers["content-type"].split(";")[0]) == (status, kind)
        assert spoiled.complete == (fault != "cdn-cut")
        match fault:
            case "cdn-cut":
                assert spoiled.headers["content-length"] == "50000"
                assert spoiled.body == good.body[:25_000]
            case "cdn-corrupt":
                wrong = [n for n, (a, b) in enumerate(zip(spoiled.body, good.body, strict=True)) if a != b]
                assert wrong == [25_000]
                with pytest.raises(Exception, match=r"broken PNG|bad header checksum|CRC"):
                    open_verified(spoiled.body)
            case "cdn-trailing":
                assert spoiled.body.startswith(good.body)
                assert len(spoiled.body) > len(good.body)
                assert spoiled.headers["content-length"] == str(len(spoiled.body))
            case "cdn-slow":
                assert spoiled.body == good.body
            case "cdn-html":
                assert spoiled.body.startswith(b"<html>")
            case _:
                assert spoiled.json["error"]
        complete = 2 if fault in ("cdn-corrupt", "cdn-trailing", "cdn-slow") else 1
        assert client.totals()["downloads"] == complete

    run_with_simulator(
        ask, **NO_LATENCY, image_bytes=50_000, faults={fault: 1.0}, fault_max_attempts=1, slow_duration_s=0.0
    )


def test_a_cut_download_can_be_resumed() -> None:
    """What was cut and what a range gives from there on make the image, although both were cut."""

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
    """With fault_max_attempts the first download of each output is struck, in whatever order they are asked for."""

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted()
        one, two = client.image_url(request_id), client.image_url(request_id, "output-2.png")
        assert [(await client.get(url)).status for url in (one, one, two, one, two)] == [503, 200, 503, 200, 200]

    run_with_simulator(ask, **NO_LATENCY, outputs=2, faults={"cdn-503": 1.0}, fault_max_attempts=1)


# ---- drawn images --------------------------------------------------------------------------------------


def test_a_drawn_image_shows_its_job() -> None:
    """A drawn image opens in Pillow and carries the prompt, the parameters and the request_id."""
    prompt = "Zwölf Boxkämpfer — 猫 🐈 \u0007"

    async def ask(client: SimulatorClient) -> None:
        request_id = await client.submit_accepted({"prompt": prompt, "seed": 2**70, "creativity": "high"})
        answer = await client.get(client.image_url(request_id))
        image = open_verified(answer.body)
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
    """Each ratio of the document has a size that meets it within one percent, of about a million pixels."""
    assert set(IMAGE_SIZES) == set(VALID_ASPECT_RATIOS)
    for text, (width, height) in IMAGE_SIZES.items():
        assert width / height == pytest.approx(ratio(text), rel=0.01)
        assert width * height == pytest.approx(1e6, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("aspect_ratio", VALID_ASPECT_RATIOS)
def test_each_ratio_as_drawn(aspect_ratio: str) -> None:
    """A downloaded image has the ratio that its job asked for within one percent."""

    async def ask(client: SimulatorClient) -> None:
        width, height = open_verified(await client.download_image(CAT_BODY | {"aspect_ratio": aspect_ratio})).size
        assert width / height == pytest.approx(ratio(aspect_ratio), rel=0.01)

    run_with_simulator(ask, **NO_LATENCY, tiny=False)


@pytest.mark.slow
def test_the_same_body_and_seed_give_the_same_pixels() -> None:
    """Two jobs of one body with a seed are one image, on another simulator too; another prompt or seed is not."""

    async def ask(client: SimulatorClient) -> list[bytes]:
        bodies = [
            CAT_BODY | {"seed": 1},
            CAT_BODY | {"seed": 1},
            CAT_BODY | {"seed": 2},
            {"prompt": "a dog", "seed": 1},
        ]
        return [pixels(await client.download_image(body)) for body in bodies]

    first, again, other_seed, other_prompt = run_with_simulator(ask, **NO_LATENCY, tiny=False)
    assert first == again
    assert len({first, other_seed, other_prompt}) == 3
    assert run_with_simulator(ask, **NO_LATENCY, tiny=False, seed=5)[0] == first


@pytest.mark.slow
def test_parameters_change_the_image() -> None:
    """Another creativity or another output of the same job is another image."""
    seen = {pixels(draw(CAPTION_FIELDS | {"creativity": creativity}, "7")) for creativity in CREATIVITY}
    assert len(seen | {pixels(draw(CAPTION_FIELDS, "8"))}) == 5


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
    """Whatever a prompt says, its image opens and carries it to the letter."""
    image = open_verified(
        draw(CAPTION_FIELDS | {"prompt": prompt, "aspect_ratio": "2.35:1", "creativity": "high"}, "1")
    )
    assert image.info["prompt"] == prompt
    assert image.size == IMAGE_SIZES["2.35:1"]


@pytest.mark.slow
def test_images_are_the_same_in_every_process() -> None:
    """Drawn, tiny and noisy images are the same bytes in processes whose string hashes differ."""
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
            timeout=60,
        )
        assert run.stdout.strip() == hashlib.sha256(made).hexdigest(), run.stderr


# ---- tiny images ---------------------------------------------------------------------------------------


def test_a_tiny_image() -> None:
    """With `tiny` an image is a few hundred bytes, valid, and carries the same words as a drawn one."""

    async def ask(client: SimulatorClient) -> None:
        data = await client.download_image(CAT_BODY | {"aspect_ratio": "9:16"})
        assert len(data) < 1000
        image = open_verified(data)
        assert image.info["prompt"] == "a cat"
        assert image.info["request_id"] == client.posts()[0]["request_id"]
        assert image.size == (14, 24)

    run_with_simulator(ask, **NO_LATENCY)


def test_tiny_ratios_are_distinguishable() -> None:
    """The eight ratios have eight tiny sizes, in the order of their widths."""
    sizes = {
        text: open_verified(tiny_image(CAPTION_FIELDS | {"aspect_ratio": text}, "1")).size
        for text in VALID_ASPECT_RATIOS
    }
    assert len(set(sizes.values())) == 8
    in_order = sorted(VALID_ASPECT_RATIOS, key=ratio)
    assert sorted(VALID_ASPECT_RATIOS, key=lambda text: sizes[text][0] / sizes[text][1]) == in_order


def test_tiny_colours_come_from_prompt_and_seed() -> None:
    """The same body and seed give the same tiny pixels, another prompt or seed others."""

    async def ask(client: SimulatorClient) -> None:
        bodies = [
            CAT_BODY | {"seed": 1},
            CAT_BODY | {"seed": 1},
            CAT_BODY | {"seed": 2},
            {"prompt": "a dog", "seed": 1},
        ]
        first, again, *others = [pixels(await client.download_image(body)) for body in bodies]
        assert first == again
        assert len({first, *others}) == 3

    run_with_simulator(ask, **NO_LATENCY)


def test_without_a_seed_each_job_makes_its_own_image() -> None:
    """Two jobs of one body without a seed differ, and a simulator with the same seed makes both again."""

    async def ask(client: SimulatorClient) -> list[bytes]:
        return [pixels(await client.download_image()) for _ in range(2)]

    first, second = run_with_simulator(ask, **NO_LATENCY)
    assert first != second
    assert run_with_simulator(ask, **NO_LATENCY) == [first, second]
    assert first not in run_with_simulator(ask, **NO_LATENCY, seed=1)


@pytest.mark.parametrize("size", [4096, 5000, 65_536, 65_537, 300_000])
def test_an_image_of_exactly_n_bytes(size: int) -> None:
    """With `image_bytes` an image has exactly that size, opens, and hardly compresses."""

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
    chance=st.text(max_size=8),
)
def test_image_bytes_are_exact(size: int, aspect_ratio: str, prompt: str, chance: str) -> None:
    """For any size and any words a padded image has exactly so many bytes, right chunks, and the ratio."""
    text = CAPTION_FIELDS | {"aspect_ratio": aspect_ratio, "prompt": prompt}
    image_data = tiny_image(text, chance, size)
    assert len(image_data) == size
    found = chunks(image_data)
    width, height = struct.unpack(">II", found[0][1][:8])
    assert abs(width - height * ratio(aspect_ratio)) <= 0.5
    rows = zlib.decompress(b"".join(data for kind, data in found if kind == b"IDAT"))
    assert len(rows) == (width * 3 + 1) * height
    assert set(rows[:: width * 3 + 1]) == {0}
    texts = dict(data.split(b"\0\0\0\0\0", 1) for kind, data in found if kind == b"iTXt")
    assert texts[b"prompt"].decode() == prompt


def test_a_prompt_too_long_for_its_size() -> None:
    """A prompt that needs more room than the size has is carried whole all the same."""
    prompt = "long " * 2000
    image_data = tiny_image(CAPTION_FIELDS | {"prompt": prompt}, "1", 4096)
    assert open_verified(image_data).info["prompt"] == prompt
