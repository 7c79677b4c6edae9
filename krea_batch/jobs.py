"""Jobs, their states and their outcomes.

A `Job` is both a line of a job file and what callers of the library create. Checks that a type cannot state are in
`__post_init__`, so a `Job` that exists is valid for the API. msgspec checks the types of a job that is decoded from a
file, and `validate_job` those of a job that a caller created.

Types, ranges and defaults are the request parameters of the API document.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from krea_batch.errors import JobError

AspectRatio = Literal["1:1", "4:3", "3:2", "16:9", "2.35:1", "4:5", "2:3", "9:16"]
Creativity = Literal["raw", "low", "medium", "high"]
ASPECT_RATIOS: tuple[str, ...] = get_args(AspectRatio)
CREATIVITIES: tuple[str, ...] = get_args(Creativity)

MAX_REFERENCES = 10  # API document, image_style_references: maximum 10 entries
MAX_STYLES = 10  # API document, styles: maximum 10 entries
MAX_MOODBOARDS = 1  # API document, moodboards: maximum 1 entry per request
MAX_ID_BYTES = 200  # chosen: file systems allow names of 255 bytes, and "-12.1234567890.png.part" is appended
MAX_IMAGE_NAME_BYTES = 800  # chosen: with a prefix, it fits into the 1,024 bytes of an object's key on S3
SEED_RANGE = (-(2**63), 2**64 - 1)  # chosen: the document gives no range; JSON encoders keep these exactly

UUID_PATTERN = "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
_UUID = re.compile(UUID_PATTERN)
_SIMPLE_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_ID_BYTES}}}")
_INVALID_IN_FILE_NAMES = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]|\.\.")
_INVALID_IN_PARTS = re.compile(r"[\\\x00-\x1f\x7f-\x9f]")
LIKE_A_FILE = re.compile(r"\.(?:png|jpe?g|webp|gif|avif|part)$", re.IGNORECASE)
_INVALID_IN_IMAGE_URLS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")

CONTENT_NAME_PATTERN = r"[0-9a-f]{64}\.(?:png|jpg|webp)"
"""The name of the content of a local reference image, and of its object: its SHA-256 and its extension."""

_OBJECT_URL = re.compile(rf'(?!https?:)(?:sha256:|[^"\\\s]+/){CONTENT_NAME_PATTERN}')


class ImageStyleReference(Struct, frozen=True, forbid_unknown_fields=True):
    """An image that guides the style: a URL, or a local file. A negative strength steers away from its style.

    A local file, `image_path`, is uploaded to `references`, a setting of the run, before the job is submitted.
    """

    image_url: str = ""
    strength: float = 1.0
    image_path: str = ""

    def __post_init__(self) -> None:
        if self.image_url and self.image_path:
            raise ValueError("a style reference has both image_url and image_path")
        if self.image_path:
            check_image_path(self.image_path)
        else:
            check_image_url(self.image_url)
        check_strength(self.strength)


class FileReference(ImageStyleReference, frozen=True):
    """A style reference whose file was read: `image_url` names its content.

    The URL is "sha256:" or the URL of a directory of an object store, followed by the name of the content: its
    SHA-256 and the extension of its type. The ledger and the results contain this URL; it is replaced by a signed URL
    when the job is submitted. `image_path` is empty if only the object is known, as in a row of results.
    """

    def __post_init__(self) -> None:
        if not is_object_url(self.image_url):
            raise ValueError(f"{self.image_url[:80]!r} does not name the content of an image")
        check_strength(self.strength)

    @property
    def name(self) -> str:
        """The name of the content, such as "9f86….png"."""
        return self.image_url.replace(":", "/").rpartition("/")[2]


class Style(Struct, frozen=True, forbid_unknown_fields=True):
    """One of Krea's LoRA styles, by its id in Krea's catalogue."""

    id: Annotated[str, Meta(min_length=1)]
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strength(self.strength)


class Moodboard(Struct, frozen=True, forbid_unknown_fields=True):
    """One of Krea's moodboards, by its UUID in Krea's catalogue."""

    id: str
    strength: float = 0.23

    def __post_init__(self) -> None:
        if not _UUID.fullmatch(self.id):
            raise ValueError(f"moodboard id {self.id[:60]!r} is not a UUID")
        check_strength(self.strength)


class Job(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One requested image: the fields of the request, and `id` and `metadata`, which are never sent.

    `id` identifies the job in the ledger and in results, and names its files. If it is empty, the reader of a job
    file sets the line number, and `Engine.submit` a random id. `seed` is sent only if it is set. `image_name` names
    the files of the job instead of the id. It may have folders (`cats/1`); an image's extension in it is not used.

    Raises TypeError if the prompt, the seed or the name has the wrong type, and ValueError for a value that is not
    allowed. While decoding, msgspec converts both to ValidationError.
    """

    prompt: str
    aspect_ratio: AspectRatio = "1:1"
    creativity: Creativity = "medium"
    seed: int | UnsetType = UNSET
    image_style_references: Annotated[tuple[ImageStyleReference, ...], Meta(max_length=MAX_REFERENCES)] = ()
    styles: Annotated[tuple[Style, ...], Meta(max_length=MAX_STYLES)] = ()
    moodboards: Annotated[tuple[Moodboard, ...], Meta(max_length=MAX_MOODBOARDS)] = ()
    id: str = ""
    image_name: str = ""
    metadata: dict[str, Any] = {}  # msgspec copies an empty default for each instance

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise TypeError(f"the prompt is {type(self.prompt).__name__}, not str")
        if not self.prompt or self.prompt.isspace():
            raise ValueError("the prompt is empty")
        if self.id and not _SIMPLE_ID.fullmatch(self.id):  # Nearly every id ends here, in a third of the time.
            check_id(self.id)
        if self.image_name:
            check_image_name(self.image_name)
        if self.seed is not UNSET:
            check_seed(self.seed)


FIELDS: tuple[str, ...] = Job.__struct_fields__

_decode_job = msgspec.json.Decoder(Job).decode


def check_id(job_id: str) -> None:
    """Raise ValueError unless the id is safe as a file name in the run directory."""
    if len(job_id.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise ValueError(f"id {job_id[:40]!r}… is longer than {MAX_ID_BYTES} bytes")
    if job_id == "." or _INVALID_IN_FILE_NAMES.search(job_id):
        raise ValueError(f"id {job_id!r} cannot be used as a file name")
    try:
        job_id.encode()
    except UnicodeEncodeError:
        raise ValueError(f"id {job_id!r} contains a lone surrogate") from None


def check_image_name(name: str) -> None:
    """Raise ValueError unless the name is safe as a relative path with slashes, and TypeError if it is not text.

    A file system may be unable to tell a folder from a file of the same name, so a folder is not named like one.
    """
    if not isinstance(name, str):
        raise TypeError(f"image_name is {type(name).__name__}, not str")
    *folders, last = name.split("/")
    if any(part in ("", ".", "..") or _INVALID_IN_PARTS.search(part) for part in (*folders, last)):
        raise ValueError(f"image_name {name[:80]!r} cannot be used as a path")
    if any(LIKE_A_FILE.search(folder) for folder in folders):
        raise ValueError(f"image_name {name[:80]!r} has a folder that is named like a file")
    if not without_image_extension(last):
        raise ValueError(f"image_name {name[:80]!r} is an extension without a name")
    try:
        sizes_bytes = [len(part.encode()) for part in (*folders, last)]
    except UnicodeEncodeError:
        raise ValueError(f"image_name {name[:80]!r} contains a lone surrogate") from None
    if max(sizes_bytes) > MAX_ID_BYTES or sum(sizes_bytes) + len(folders) > MAX_IMAGE_NAME_BYTES:
        limits = f"{MAX_ID_BYTES} bytes in a part or {MAX_IMAGE_NAME_BYTES} in all"
        raise ValueError(f"image_name {name[:40]!r}… is longer than {limits}")


def without_image_extension(name: str) -> str:
    """Return a file name without the extension of an image, which is given by the image itself."""
    return LIKE_A_FILE.sub("", name)


def check_seed(seed: int) -> None:
    """Raise TypeError if the seed is not an int, and ValueError if it is outside SEED_RANGE."""
    if not isinstance(seed, int):
        raise TypeError(f"the seed is {type(seed).__name__}, not int")
    if not SEED_RANGE[0] <= seed <= SEED_RANGE[1]:
        raise ValueError(f"the seed has {seed.bit_length()} bits and does not fit in 64")


def check_image_url(url: str) -> None:
    """Raise ValueError unless the URL is an absolute HTTPS URL (API document, image_style_references)."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme != "https" or not parts.hostname or _INVALID_IN_IMAGE_URLS.search(url):
        raise ValueError(f"image_url {url[:80]!r} is not an HTTPS URL")


def check_image_path(path: str) -> None:
    """Raise ValueError for text that can be no path: without a name, or with a null byte or a lone surrogate."""
    if not path.strip() or "\0" in path:
        raise ValueError(f"image_path {path[:80]!r} is not a path")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"image_path {path[:80]!r} contains a lone surrogate") from None


def is_object_url(url: str) -> bool:
    """Return whether a URL names the content of an image, as that of a `FileReference` does."""
    return _OBJECT_URL.fullmatch(url) is not None


def check_strength(strength: float) -> None:
    """Raise ValueError for NaN and infinities, which JSON cannot represent."""
    if not math.isfinite(strength):
        raise ValueError(f"strength {strength} is not a finite number")


def convert_job(fields: Mapping[str, Any]) -> Job:
    """Return the job with these fields, as `msgspec.convert` does, which raises ValidationError.

    A reference image may also have the URL that krea-batch records for a local one, so that results can be read as
    jobs.
    """
    references = fields.get("image_style_references")
    if not isinstance(references, list | tuple):
        return msgspec.convert(fields, Job)
    others = [as_url_entry(each) for each in references]
    if others == list(references):
        return msgspec.convert(fields, Job)
    job = msgspec.convert({**fields, "image_style_references": others}, Job)
    converted = tuple(
        other if entry is each else FileReference(each["image_url"], other.strength, str(each.get("image_path", "")))
        for each, entry, other in zip(references, others, job.image_style_references, strict=True)
    )
    return msgspec.structs.replace(job, image_style_references=converted)


def as_url_entry(entry: Any) -> Any:
    """Return an entry of `image_style_references`. Replace the URL recorded for a local image by an ordinary one.

    Anything else that is wrong with the entry is then found by the checks of an entry with a URL.
    """
    if isinstance(entry, dict) and is_object_url(str(entry.get("image_url"))):
        return entry | {"image_url": "https://object", "image_path": ""}
    return entry


def validate_job(job: Job) -> Job:
    """Return an equal job whose fields have passed the checks of a job file: types, ranges, JSON-encodable.

    Raises JobError if a field is invalid.
    """
    try:
        encoded = msgspec.json.encode(job)
        if any(isinstance(each, FileReference) for each in job.image_style_references):
            return convert_job(msgspec.json.decode(encoded))
        return _decode_job(encoded)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise JobError(str(error), "see `krea-batch schema` for the fields of a job", job_id=job.id) from None


class StateInfo(Struct, frozen=True, kw_only=True):
    """The properties of a state. Summaries, metrics, SQL checks and the reference derive from them.

    `final`: this run does nothing more with the job. `in_flight`: submitted and not final. `charged`: whether the
    latest submission was charged; None if that is unknown, False for a pending job. `resumes_as`: the state in which
    the next run continues the job, or None if it does not; `rules.lifecycle.on_resume` adds the conditions.
    `unsuccessful`: final for every later run too, and without an image. `retryable`: `krea-batch retry` can submit
    the job again, and does so without `--status` if `retried_by_default`. `label` is shown in summaries, `doc` in
    the reference.
    """

    label: str
    doc: str
    final: bool = False
    in_flight: bool = False
    charged: bool | None = None
    resumes_as: State | None = None
    unsuccessful: bool = False
    retryable: bool = False
    retried_by_default: bool = False


class State(StrEnum):
    """The state of a job. `STATES` describes each state, `rules.lifecycle` the transitions."""

    PENDING = "pending"
    SUBMITTING = "submitting"
    ACCEPTED = "accepted"
    FINISHED = "finished"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ERRORED = "errored"
    REJECTED = "rejected"
    AMBIGUOUS = "ambiguous"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"

    @property
    def info(self) -> StateInfo:
        """The row of `STATES` for this state."""
        return STATES[self]


STATES: Mapping[State, StateInfo] = {
    State.PENDING: StateInfo(
        charged=False,
        resumes_as=State.PENDING,
        label="not submitted yet",
        doc="Waits to be submitted, or to be submitted again after a refusal that charged nothing.",
    ),
    State.SUBMITTING: StateInfo(
        in_flight=True,
        resumes_as=State.AMBIGUOUS,
        label="being submitted",
        doc="The intent to submit is durable; the POST may have been sent.",
    ),
    State.ACCEPTED: StateInfo(
        in_flight=True,
        charged=True,
        resumes_as=State.ACCEPTED,
        label="generating",
        doc="The gateway has accepted the job; its request_id is durable.",
    ),
    State.FINISHED: StateInfo(
        in_flight=True,
        charged=True,
        resumes_as=State.FINISHED,
        label="completed, not downloaded yet",
        doc="The gateway has completed the job; its images are being downloaded.",
    ),
    State.SUCCEEDED: StateInfo(final=True, charged=True, label="stored", doc="Every image of the job is stored."),
    State.FAILED: StateInfo(
        final=True,
        charged=True,
        unsuccessful=True,
        retryable=True,
        retried_by_default=True,
        label="failed at the gateway (charged)",
        doc="The gateway reported FAILED, which is charged.",
    ),
    State.ERRORED: StateInfo(
        final=True,
        charged=False,
        resumes_as=State.PENDING,
        retryable=True,
        retried_by_default=True,
        label="ended in ERROR (not charged); run again with a higher --max-attempts",
        doc="The gateway reported ERROR, which is not charged, as often as `max_attempts` allows.",
    ),
    State.REJECTED: StateInfo(
        final=True,
        charged=False,
        unsuccessful=True,
        retryable=True,
        retried_by_default=True,
        label="rejected by the gateway (not charged)",
        doc="The gateway refused the request; nothing was queued.",
    ),
    State.AMBIGUOUS: StateInfo(
        final=True,
        resumes_as=State.AMBIGUOUS,
        label="ambiguous (may have been charged); decide with krea-batch resolve",
        doc="A POST was sent, and it is unknown whether the gateway accepted it.",
    ),
    State.TIMED_OUT: StateInfo(
        final=True,
        charged=True,
        resumes_as=State.ACCEPTED,
        retryable=True,
        label="timed out; run again to keep polling (no extra charge)",
        doc="The image did not arrive within `job_timeout_s`; the next run continues to poll.",
    ),
    State.CANCELLED: StateInfo(
        final=True,
        unsuccessful=True,
        retryable=True,
        label="cancelled",
        doc="A user decided not to submit an ambiguous job again, or not to wait for one that timed out.",
    ),
}
"""The table of states. To add a state, add a member of `State`, a row here, and transitions in `rules.lifecycle`."""

IN_FLIGHT = tuple(state for state in State if state.info.in_flight)
"""The states between the durable intent to submit and a final state."""

FINAL = frozenset(state for state in State if state.info.final)
"""The states in which a job has ended for this run."""

RETRYABLE = tuple(state for state in State if state.info.retryable)
"""The states, all without an image, from which `krea-batch retry` requeues a job."""

RETRIED_BY_DEFAULT = tuple(state for state in RETRYABLE if state.info.retried_by_default)
"""The states from which `krea-batch retry` requeues a job without --status."""


class StoredFile(Struct, frozen=True, omit_defaults=True):
    """A stored image, complete and durable. `path` is relative to the run directory, or is what the sink returned.

    `width` and `height` are in pixels, 0 if unknown. `defect` says why it is not a valid PNG, and is empty if it is;
    then it is left out of `results.jsonl`.
    """

    path: str
    bytes: int
    sha256: str
    width: int
    height: int
    media_type: str
    defect: str = ""


class ErrorInfo(Struct, frozen=True):
    """Why a job did not succeed: `kind` is a short, stable identifier, `message` a sentence."""

    kind: str
    message: str


class Outcome(Struct, frozen=True, kw_only=True, dict=True):
    """The outcome of one job: a row of `results.jsonl`.

    Instants are UTC in ISO 8601, or None if they have not occurred. `request` is the body as sent, but a local
    reference image has the URL of its object instead of the signed one. `polls` counts status requests, `attempts`
    counts POSTs. A notebook shows the first image, or why there is none.
    """

    id: str
    status: State
    request_id: str | None
    files: tuple[StoredFile, ...]
    error: ErrorInfo | None
    request: dict[str, Any]
    metadata: dict[str, Any]
    polls: int
    attempts: int
    submitted_at: str | None
    accepted_at: str | None
    finished_at: str | None
    stored_at: str | None

    @property
    def succeeded(self) -> bool:
        """Whether every image of the job is stored."""
        return self.status is State.SUCCEEDED

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Any:
        """Return what a notebook shows. See `krea_batch.storage.notebook_display`."""
        display = self.__dict__.get("display")
        return display(self) if display else {"text/plain": repr(self)}
