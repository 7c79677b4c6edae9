"""Names of images: templates such as `{id}_{seed}` or `{animal}/{prompt}`, and names that other systems take.

A name is a relative path with slashes and without extension. Only a slash of the template makes a folder. A value may
come from someone else, so whatever it is, the result passes `jobs.check_image_name`, and is a valid name on Windows.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from string import Formatter
from typing import Any

from krea_batch.errors import JobError
from krea_batch.jobs import LIKE_A_FILE, MAX_ID_BYTES, Job, check_image_name, without_image_extension

MAX_PROMPT_CHARS = 60  # chosen: a name stays readable in a list of files
HASH_CHARS = 8  # chosen: a collision is harmless, since no image replaces another
_SANITIZE_CHARS = 100_000  # chosen: more than any name has, since `_shorten` cuts it

_SIMPLE = re.compile(rf"[A-Za-z0-9_-]{{8,{MAX_ID_BYTES}}}")  # longer than any device of Windows, such as CONOUT$
_INVALID = re.compile(r'[/\\<>:"|?*\x00-\x1f\x7f-\x9f\ud800-\udfff]')  # Windows, Naming Files; and POSIX
_UNPORTABLE = re.compile(r"[^a-z0-9._-]+")  # POSIX.1-2017, 3.282 Portable Filename Character Set, in lower case
_HINT = "write fields in braces, {id}_{seed}, a slash for a folder, and {{ }} for braces"


class NameTemplate:
    """The name of an image with fields in braces; formats such as {seed:010} are those of `str.format`.

    With `portable`, names have only lower-case ASCII letters, digits and `.`, `_`, `-`. Raises JobError if the
    template is not valid.
    """

    def __init__(self, text: str, *, portable: bool = False) -> None:
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise JobError(f"invalid name {text!r} ({error})", _HINT) from None
        if any(name == "" for _, name, _, _ in parts):
            raise JobError(f"the name {text!r} has braces without a field", _HINT)
        if any(conversion or "{" in (spec or "") for _, _, spec, conversion in parts):
            raise JobError(f"the name {text!r} has braces with more than a field and its format", _HINT)
        if invalid := next(
            (match for before, *_ in parts if (match := _INVALID.search(before.replace("/", "")))), None
        ):
            raise JobError(f"the name {text!r} has {invalid[0]!r}, which some file systems forbid", "leave it out")
        if any(not part.strip(". ") for part in text.split("/")):
            raise JobError(f"the name {text!r} has an empty part, or . or ..", "write a path like {animal}/{id}")
        self._parts = [(before, name, spec or "") for before, name, spec, _ in parts]
        self._portable = portable
        self.names = tuple(dict.fromkeys(name for _, name, _ in self._parts if name))
        if not self.names:
            raise JobError(f"the name {text!r} has no field, so all images would have it", _HINT)

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the name with these values. Raises JobError if one is missing, or is neither text nor number."""
        text = "".join(before + (_text(values, name, spec) if name else "") for before, name, spec in self._parts)
        if any(not part.strip(". ") for part in text.split("/")):
            raise JobError(f"the name of the image would be {text!r}", "a part of it is empty: leave out that field")
        return safe_path(text, portable=self._portable)


def values_of(job: Job, job_id: str) -> dict[str, Any]:
    """Return what a template can name of a job: its metadata, and its own fields, the prompt as a slug."""
    values = job.metadata | {
        "id": job_id,
        "prompt": slug_of(job.prompt),
        "aspect_ratio": job.aspect_ratio.replace(":", "x"),
        "creativity": job.creativity,
    }
    return values | {"seed": job.seed} if isinstance(job.seed, int) else values


def slug_of(prompt: str) -> str:
    """Return the first words of a prompt, joined by hyphens, in lower case; its hash if it has none."""
    chars = (char if unicodedata.category(char)[0] in "LMN" else " " for char in prompt[:1000].lower())
    slug = "-".join("".join(chars).split())
    if len(slug) > MAX_PROMPT_CHARS:
        slug = slug[: MAX_PROMPT_CHARS + 1].rpartition("-")[0] or slug[:MAX_PROMPT_CHARS]
    return slug or _hash(prompt)


def safe_path(text: str, *, portable: bool = False) -> str:
    """Return a path, without an image's extension, with each part changed as far as some file system needs it.

    Raises JobError if it is too long.
    """
    *folders, last = text.split("/")
    # A folder that is named like a file could take the name of an image.
    parts = [LIKE_A_FILE.sub(lambda match: f"_{match[0][1:]}", folder.rstrip(". ")) for folder in folders]
    parts.append(without_image_extension(last))
    path = "/".join(safe_part(part, portable=portable) for part in parts)
    try:
        check_image_name(path)
    except ValueError as error:
        raise JobError(str(error), "use fewer folders, or shorter values") from None
    return path


def safe_part(part: str, *, portable: bool = False) -> str:
    """Return a valid name of a file or folder on Windows, and so elsewhere; with `portable`, see `NameTemplate`."""
    if portable:
        ascii_text = unicodedata.normalize("NFKD", part).encode("ascii", "ignore").decode().lower()
        part = _UNPORTABLE.sub("-", ascii_text).strip("-.") or _hash(part)
    if _SIMPLE.fullmatch(part):
        return part
    from pathvalidate import sanitize_filename  # It is slow to import, and most runs have no names to make.

    # The second time is for what the first has left at the end, such as the dot of "a .".
    for _ in range(2):
        part = sanitize_filename(
            _INVALID.sub("_", part), replacement_text="_", platform="windows", max_len=_SANITIZE_CHARS
        )
    return _shorten(part.strip() if part.strip(". ") else _hash(part))


def _shorten(part: str) -> str:
    """Return a part that fits; a hash of all of it keeps it apart from others that begin alike."""
    data = part.encode()
    if len(data) <= MAX_ID_BYTES:
        return part
    return f"{data[: MAX_ID_BYTES - HASH_CHARS - 1].decode(errors='ignore')}-{_hash(part)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:HASH_CHARS]


def _is_usable(value: object) -> bool:
    return value is not None and not isinstance(value, list | dict | bool)


def _text(values: Mapping[str, Any], name: str, spec: str) -> str:
    if name not in values:
        usable = ", ".join(each for each, value in values.items() if _is_usable(value))
        hint = f"there are {usable}" if name != "seed" else "give each job a seed, or leave out {seed}"
        raise JobError(f'no "{name}" for the name of the image', hint)
    value = values[name]
    if not _is_usable(value):
        raise JobError(f'"{name}" of the image\'s name is {value!r:.60}', "use text or a number")
    try:
        text = format(value, spec)
    except ValueError as error:
        raise JobError(
            f'"{name}" of the image\'s name cannot be formatted ({error})', "change what follows the colon"
        ) from None
    return _INVALID.sub("_", text.strip())
