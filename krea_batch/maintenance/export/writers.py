"""Images come in; a folder or file that other tools load goes out, under its name once it is whole.

Newcomers: everything is written beside its place first, and renamed at the end. A process that dies leaves a hidden
`.NAME.part`, which the next export of that name clears away.
"""

from __future__ import annotations

import csv
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from importlib import import_module
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec

from krea_batch.errors import InputError
from krea_batch.maintenance.export.png_metadata import texts_for, embed_texts
from krea_batch.maintenance.export.run_images import ExportedImage, RunImages

ROW_GROUP_BYTES = 64 << 20  # chosen: images in memory at once, and what a reader of Parquet loads at once
SHARD_IMAGES = 1000  # chosen: with 2 MB an image, shards of the 1 to 2 GB that WebDataset's documentation advises
METADATA_FILE = "metadata.jsonl"  # Hugging Face datasets, "Create an image dataset": its name, and `file_name` first

OnExported = Callable[[int], None]


class ExportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to export. `embed`: what is known of an image is put into its PNG."""

    embed: bool = False
    shard_images: int = SHARD_IMAGES
    force: bool = False


def export(run_images: RunImages, format_name: str, output: Path, options: ExportOptions, on_progress: OnExported | None = None) -> int:
    """Write the gallery's images to `to` in the format of this name (FORMATS). Returns how many they are.

    `seen` hears of each image, 1 at a time. Raises InputError where `to` is there and not to be replaced, an image
    is not as recorded, or there is none; OSError where the disk fails.
    """
    count = run_images.count()
    if not count:
        raise InputError(f"there is no image in {run_images.out}", "see krea-batch status OUT")
    if os.path.lexists(output) and not options.force:
        raise InputError(f"{output} is there already", "choose another name, or add --force to replace it")
    write = WRITERS[format_name]
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.parent / f".{output.name}.part"
    _remove(part)
    try:
        write(run_images, part, options, on_progress or (lambda _: None))
        if options.force:
            _remove(output)
        part.rename(output)
    except BaseException:
        _remove(part)
        raise
    return count


def _imagefolder(run_images: RunImages, part: Path, options: ExportOptions, on_progress: OnExported) -> None:
    """A folder of PNGs with `metadata.jsonl`, as `datasets.load_dataset("imagefolder")` takes it."""
    part.mkdir()
    with (part / METADATA_FILE).open("wb") as rows:
        for image in run_images.images():
            (part / image.name).write_bytes(_image_bytes(image, options))
            rows.write(msgspec.json.encode({"file_name": image.name, **image.columns()}) + b"\n")
            on_progress(1)


def _zip(run_images: RunImages, part: Path, options: ExportOptions, on_progress: OnExported) -> None:
    """The same in a ZIP file, stored: PNGs do not get any smaller."""
    rows = BytesIO()
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as file:
        for image in run_images.images():
            file.writestr(f"images/{image.name}", _image_bytes(image, options))
            rows.write(msgspec.json.encode({"file_name": f"images/{image.name}", **image.columns()}) + b"\n")
            on_progress(1)
        file.writestr(METADATA_FILE, rows.getvalue(), zipfile.ZIP_DEFLATED)


def _csv(run_images: RunImages, part: Path, _: ExportOptions, on_progress: OnExported) -> None:
    """A row an image, a column a key of the metadata; the images stay where they are, and `path` leads there."""
    keys = list(dict.fromkeys(key for image in run_images.images() for key in image.outcome.metadata))
    with part.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        for image in run_images.images():
            columns = image.columns()
            columns.pop("metadata")
            if image.number == 1:
                rows.writerow(["path", *columns, *(f"metadata.{key}" for key in keys)])
            values = [image.outcome.metadata.get(key) for key in keys]
            rows.writerow([image.path.absolute(), *columns.values(), *map(_csv_cell, values)])
            on_progress(1)


def _webdataset(run_images: RunImages, part: Path, options: ExportOptions, on_progress: OnExported) -> None:
    """Shards of `<number>.png` and `<number>.json`: an id may hold dots, at which WebDataset parts names."""
    part.mkdir()
    images = run_images.images()
    for n, first in enumerate(images):
        with tarfile.open(part / f"shard-{n:06d}.tar", "w") as shard:
            for image in chain([first], islice(images, options.shard_images - 1)):
                fields = image.columns() | {"metadata": image.outcome.metadata}
                _add(shard, f"{image.number:09d}.png", _image_bytes(image, options))
                _add(shard, f"{image.number:09d}.json", msgspec.json.encode(fields))
                on_progress(1)


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    shard.addfile(info, BytesIO(data))


def _parquet(run_images: RunImages, part: Path, options: ExportOptions, on_progress: OnExported) -> None:
    """One file with the images in it, in the schema that Hugging Face datasets knows images by."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise InputError("Parquet is written by pyarrow", "pip install 'krea-batch[parquet]'") from None
    schema = _schema(arrow, _seed_type(arrow, run_images.images()))
    size_bytes = 0
    rows: list[dict[str, Any]] = []
    with parquet.ParquetWriter(part, schema) as file:
        for image in run_images.images():
            data = _image_bytes(image, options)
            rows.append({"image": {"bytes": data, "path": image.name}, **image.columns()})
            size_bytes += len(data)
            if size_bytes >= ROW_GROUP_BYTES:
                file.write_table(arrow.Table.from_pylist(rows, schema))
                rows, size_bytes = [], 0
            on_progress(1)
        if rows:
            file.write_table(arrow.Table.from_pylist(rows, schema))


def _schema(arrow: Any, seed: Any) -> Any:
    numbers = {"width": arrow.int32(), "height": arrow.int32(), "bytes": arrow.int64(), "seed": seed}
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    columns = [("image", image), *((name, numbers.get(name, arrow.string())) for name in _COLUMNS)]
    features = {"image": {"_type": "Image"}} | {
        name: {"dtype": str(arrow_type), "_type": "Value"} for name, arrow_type in columns if name != "image"
    }
    features_json = msgspec.json.encode({"info": {"features": features}})
    return arrow.schema(columns, {"huggingface": features_json.decode()})


def _seed_type(arrow: Any, images: Iterable[ExportedImage]) -> Any:
    """The narrowest whole number that holds every seed: a seed may have 64 bits, with a sign or without."""
    seeds = [seed for image in images if (seed := image.outcome.request.get("seed")) is not None]
    return arrow.uint64() if seeds and max(seeds) >= 1 << 63 else arrow.int64()


def _image_bytes(image: ExportedImage, options: ExportOptions) -> bytes:
    data = image.read()
    return embed_texts(data, texts_for(image.outcome)) if options.embed else data


def _csv_cell(value: object) -> object:
    return msgspec.json.encode(value).decode() if isinstance(value, list | dict) else value


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


_COLUMNS = (
    "id",
    "prompt",
    "aspect_ratio",
    "creativity",
    "seed",
    "image_style_references",
    "styles",
    "moodboards",
    "request_id",
    "width",
    "height",
    "bytes",
    "sha256",
    "submitted_at",
    "stored_at",
    "metadata",
)

WRITERS: dict[str, Callable[[RunImages, Path, ExportOptions, OnExported], None]] = {
    "imagefolder": _imagefolder,
    "parquet": _parquet,
    "webdataset": _webdataset,
    "csv": _csv,
    "zip": _zip,
}
