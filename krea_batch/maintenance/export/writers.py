"""Write the images of a run as a directory or file that other tools load.

A writer writes into a hidden directory beside the output. What it wrote gets the name of the output once it is
complete.
"""

from __future__ import annotations

import csv
import re
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
from krea_batch.maintenance.export.image_paths import ImagePaths
from krea_batch.maintenance.export.png_metadata import embed_texts, texts_for
from krea_batch.maintenance.export.recognition import COLUMNS, CSV_HEADER, is_export
from krea_batch.maintenance.export.run_images import ExportedImage, RunImages
from krea_batch.sources.data_sets import METADATA_FILE
from krea_batch.storage.outputs import check_output, path_text, replacing_output

ROW_GROUP_BYTES = 64 << 20  # chosen: image bytes held in memory, here and by readers of the file
SHARD_IMAGES = 1000  # chosen: with 2 MB per image, shards of the 1 to 2 GB that WebDataset's documentation advises

# OWASP, CSV Injection: what spreadsheets take for a formula, also after spaces and in full width. A text that begins
# with an apostrophe gets another one, so that removing the first apostrophe of a cell always restores the text.
_EVALUATED = re.compile(r"'|\s*[=+\-@＝＋－＠]|[\t\r\n]")

OnExported = Callable[[int], None]


class ExportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to export. `embed` writes the request into each valid PNG; `force` replaces an existing export.

    A CSV has an apostrophe before each text that a spreadsheet would evaluate, unless `raw_cells` is set.
    `name` is a template of the paths of the images in the export, and `portable_names` keeps these to a few
    characters (`rules.image_names`); a CSV has neither, since it has the paths of the run. `on_notice` is called with
    a sentence about what was changed.
    """

    embed: bool = False
    shard_images: int = SHARD_IMAGES
    force: bool = False
    raw_cells: bool = False
    name: str = ""
    portable_names: bool = False
    on_notice: Callable[[str], None] = lambda _: None


def export(
    run_images: RunImages,
    format_name: str,
    output: Path,
    options: ExportOptions,
    on_progress: OnExported | None = None,
) -> int:
    """Write the images of a run to `output` in the named format, a key of WRITERS. Return the number of images.

    `on_progress` is called with 1 after each image. If an image cannot be read or written, no part is left and an
    existing `output` stays as it was. Raises InputError if there are no images, `output` exists and is no export or
    `force` is not set, it is part of a run, an image differs from the ledger, or pyarrow is required and not
    installed; OSError if writing fails.
    """
    count = run_images.count()
    if not count:
        raise InputError(f"{run_images.out} has no images", "see krea-batch status OUT")

    _paths(options)  # an invalid template

    def check_existing(path: Path) -> None:
        if not is_export(path):
            problem = f"{output} already exists, and is no export of krea-batch or has other files in it"
            raise InputError(problem, "use another --output")
        if not options.force:
            raise InputError(f"{output} already exists", "use another --output, or add --force to replace it")

    check_output(output, run=run_images.out).parent.mkdir(parents=True, exist_ok=True)
    with replacing_output(output, check_existing, run=run_images.out) as part:
        WRITERS[format_name](run_images, part, options, on_progress or (lambda _: None))
    if options.embed and (defects := sum(bool(image.file.defect) for image in run_images.images())):
        options.on_notice(
            f"no metadata in {defects:,} image{' that is' if defects == 1 else 's that are'} not a valid PNG"
        )
    return count


def _imagefolder(run_images: RunImages, part: Path, options: ExportOptions, on_progress: OnExported) -> None:
    """Write a directory of PNGs with `metadata.jsonl`, for `datasets.load_dataset("imagefolder")`."""
    part.mkdir()
    paths = _paths(options)
    with (part / METADATA_FILE).open("wb") as rows:
        for image in run_images.images():
            path = paths.path_of(image)
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            (part / path).write_bytes(_image_bytes(image, options))
            rows.write(msgspec.json.encode({"file_name": path, **image.columns()}) + b"\n")
            on_progress(1)


def _zip(run_images: RunImages, part: Path, options: ExportOptions, on_progress: OnExported) -> None:
    """Write PNGs and `metadata.jsonl` into a ZIP file. PNGs are stored, since they do not compress further.

    The paths are valid on Windows, since a ZIP file is what people send there.
    """
    rows = BytesIO()
    paths = _paths(options, is_safe=True)
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as file:
        for image in run_images.images():
            path = f"images/{paths.path_of(image)}"
            file.writestr(path, _image_bytes(image, options))
            rows.write(msgspec.json.encode({"file_name": path, **image.columns()}) + b"\n")
            on_progress(1)
        file.writestr(METADATA_FILE, rows.getvalue(), zipfile.ZIP_DEFLATED)


def _csv(run_images: RunImages, part: Path, options: ExportOptions, on_progress: OnExported) -> None:
    """Write one row per image, with a column per metadata key. `path` is the image in the run; it is not copied."""
    changed = 0

    def cell(value: object) -> object:
        nonlocal changed
        text = msgspec.json.encode(value).decode() if isinstance(value, list | dict) else value
        if not isinstance(text, str) or options.raw_cells or not _EVALUATED.match(text):
            return text
        changed += 1
        return f"'{text}"

    keys = list(dict.fromkeys(key for image in run_images.images() for key in image.outcome.metadata))
    with part.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        for image in run_images.images():
            columns = image.columns()
            columns.pop("metadata")
            if image.number == 1:
                rows.writerow([*CSV_HEADER, *(f"metadata.{key}" for key in keys)])
            values = [image.outcome.metadata.get(key) for key in keys]
            rows.writerow([cell(path_text(image.path.absolute())), *map(cell, columns.values()), *map(cell, values)])
            on_progress(1)
    if changed:
        options.on_notice(
            f"{changed:,} cell{' has' if changed == 1 else 's have'} an apostrophe before a text that a spreadsheet "
            "would evaluate; --raw-cells writes it as it is"
        )


def _webdataset(run_images: RunImages, part: Path, options: ExportOptions, on_progress: OnExported) -> None:
    """Write tar shards of `<number>.png`, or another extension, and `<number>.json`.

    Files are not named by job id: an id may contain dots, and WebDataset splits names at the first dot. In names of a
    template, dots are replaced.
    """
    part.mkdir()
    paths = _paths(options, has_dots=False)
    images = run_images.images()
    for n, first in enumerate(images):
        with tarfile.open(part / f"shard-{n:06d}.tar", "w") as shard:
            for image in chain([first], islice(images, options.shard_images - 1)):
                fields = image.columns() | {"metadata": image.outcome.metadata}
                key = paths.stem_of(image) if options.name else f"{image.number:09d}"
                _add(shard, f"{key}{image.path.suffix}", _image_bytes(image, options))
                _add(shard, f"{key}.json", msgspec.json.encode(fields))
                on_progress(1)


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    shard.addfile(info, BytesIO(data))


def _parquet(run_images: RunImages, part: Path, options: ExportOptions, on_progress: OnExported) -> None:
    """Write one file that contains the images, in the schema that Hugging Face datasets recognizes."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise InputError("writing Parquet requires pyarrow", "pip install 'krea-batch[parquet]'") from None
    schema = _schema(arrow, _seed_type(arrow, run_images.images()))
    size_bytes = 0
    paths = _paths(options)
    rows: list[dict[str, Any]] = []
    with parquet.ParquetWriter(part, schema) as file:
        for image in run_images.images():
            data = _image_bytes(image, options)
            rows.append({"image": {"bytes": data, "path": paths.path_of(image)}, **image.columns()})
            size_bytes += len(data)
            if size_bytes >= ROW_GROUP_BYTES:
                file.write_table(arrow.Table.from_pylist(rows, schema))
                rows, size_bytes = [], 0
            on_progress(1)
        if rows:
            file.write_table(arrow.Table.from_pylist(rows, schema))


def _schema(arrow: Any, seed: Any) -> Any:
    numbers = {"width": arrow.int32(), "height": arrow.int32(), "bytes": arrow.int64(), "seed": seed}
    numbers |= {"rating": arrow.int8()}
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    columns = [("image", image), *((name, numbers.get(name, arrow.string())) for name in COLUMNS)]
    features = {"image": {"_type": "Image"}} | {
        name: {"dtype": str(arrow_type), "_type": "Value"} for name, arrow_type in columns if name != "image"
    }
    features_json = msgspec.json.encode({"info": {"features": features}})
    return arrow.schema(columns, {"huggingface": features_json.decode()})


def _seed_type(arrow: Any, images: Iterable[ExportedImage]) -> Any:
    """Return the narrowest integer type that holds every seed: a seed may have 64 bits, signed or unsigned."""
    seeds = [seed for image in images if (seed := image.outcome.request.get("seed")) is not None]
    return arrow.uint64() if seeds and max(seeds) >= 1 << 63 else arrow.int64()


def _paths(options: ExportOptions, *, is_safe: bool = False, has_dots: bool = True) -> ImagePaths:
    return ImagePaths(options.name, portable=options.portable_names, is_safe=is_safe, has_dots=has_dots)


def _image_bytes(image: ExportedImage, options: ExportOptions) -> bytes:
    data = image.read()
    if options.embed and not image.file.defect:
        return embed_texts(data, texts_for(image.outcome))
    return data


WRITERS: dict[str, Callable[[RunImages, Path, ExportOptions, OnExported], None]] = {
    "imagefolder": _imagefolder,
    "parquet": _parquet,
    "webdataset": _webdataset,
    "csv": _csv,
    "zip": _zip,
}
