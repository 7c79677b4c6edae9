"""A sink that stores images in S3, Google Cloud Storage or Azure.

Every image is uploaded in one request, which the store refuses if the name exists. Multipart uploads have no such
condition, and a killed process leaves parts behind that cost money and are in no listing. 64 MiB, the largest image,
is far below the limit of one request.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store, from_url

from krea_batch.errors import SettingsError
from krea_batch.storage.run_dir import candidate_names
from krea_batch.storage.sinks import SinkPermanentError, SinkTransientError, VerifiedImage

REQUEST_TIMEOUT = "120s"  # chosen: 64 MiB at 5 Mbit/s
STORE_RETRIES = 1  # chosen: the downloader retries, and reports what it waits for
LARGE_BYTES = 8 << 20  # chosen: 64 concurrent uploads of this size take 512 MB
MAX_LARGE_UPLOADS = 4  # chosen: 256 MB of the largest images

PROBE_KEY = "krea-batch-was-here"
SHA256_ATTRIBUTE = "sha256"  # key in the metadata of an object

_STATUS_IN_ERROR = re.compile(r"status code: (\d{3})")
_CODE_IN_ERROR = re.compile(r"<Code>(\w+)</Code>")
MISSING_ERRORS = (FileNotFoundError,)  # obstore, for a missing bucket or object
_DENIED_ERRORS = (PermissionDeniedError, UnauthenticatedError)
_S3_TIMEOUT_CODE = "<Code>RequestTimeout</Code>"  # S3, Error Responses: a 400 that may pass
_RERUN_HINT = "run again to resume"


class ObjectStoreSink:
    """Stores images in any store of obstore, as `<prefix>/<id>.png`; results name them by URL.

    Credentials are those of the store, from its usual environment or its constructor. An object with other content
    is never overwritten: the image is then `<id>~2.png`. `url` is the base URL in the results, for stores that have
    none.
    """

    def __init__(self, store: ObjectStore, prefix: str = "", *, url: str = "") -> None:
        self._store = store
        self._prefix = key_prefix(prefix)
        self.url = (url or url_of(store)).rstrip("/")
        self._large = asyncio.Semaphore(MAX_LARGE_UPLOADS)

    @classmethod
    def from_url(cls, url: str) -> ObjectStoreSink:
        """Return the sink of a URL such as s3://bucket/folder. Raises SettingsError."""
        return cls(open_store(url, "sink", max_retries=STORE_RETRIES), url=url)

    async def check(self) -> None:
        """Raise SinkPermanentError if the bucket is missing or refuses the credentials, else SinkTransientError.

        If the credentials may not list, an empty object is written instead, and deleted if that is allowed.
        """
        try:
            await obstore.list_with_delimiter_async(self._store, self._prefix or None)
        except (BaseError, *MISSING_ERRORS) as error:
            if not is_list_denied(error):
                raise store_error(error, self.url, "sink") from None
            await self._write_probe()

    async def _write_probe(self) -> None:
        key = f"{self._prefix}{PROBE_KEY}"
        try:
            await obstore.put_async(self._store, key, b"", use_multipart=False)
            with suppress(PermissionDeniedError):  # the empty object stays; the next run overwrites it
                await obstore.delete_async(self._store, key)
        except (BaseError, *MISSING_ERRORS) as error:
            raise store_error(error, self.url, "sink") from None

    async def put(self, image: VerifiedImage) -> str:
        """Store an image. Raises SinkTransientError, SinkPermanentError."""
        large = self._large if image.size_bytes > LARGE_BYTES else nullcontext()
        try:
            async with large:
                key = await self._store_under_free_name(image)
        except (BaseError, *MISSING_ERRORS) as error:
            raise store_error(error, self.url, "sink") from None
        return f"{self.url}/{key}"

    async def _store_under_free_name(self, image: VerifiedImage) -> str:
        """Store the image under the first free name, or find it where an earlier run stored it."""
        for name in candidate_names(image.name, image.extension):
            key = self._prefix + name
            if await self._is_free(key) and await self._create(key, image):
                return key
            if await self._has_same_bytes(key, image):
                return key
        raise AssertionError("candidate_names does not end")

    async def _is_free(self, key: str) -> bool:
        """Return whether the name is free. This saves an upload, and protects stores that ignore conditions."""
        try:
            await obstore.head_async(self._store, key)
        except FileNotFoundError:
            return True
        except PermissionDeniedError:
            return True  # S3 responds with 403 for missing objects if the credentials may not list
        return False

    async def _create(self, key: str, image: VerifiedImage) -> bool:
        """Upload. Return False if the name is taken, perhaps by an upload of ours whose response was lost."""
        attributes: Any = {"Content-Type": image.media_type, SHA256_ATTRIBUTE: image.sha256}
        data = await image.read()
        try:
            await obstore.put_async(self._store, key, data, mode="create", attributes=attributes, use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    async def _has_same_bytes(self, key: str, image: VerifiedImage) -> bool:
        """Return whether the object has the image's bytes, by its metadata or else its content."""
        try:
            head = await obstore.get_async(self._store, key, options={"head": True})
            if head.meta["size"] != image.size_bytes:
                return False
            if recorded := head.attributes.get(SHA256_ATTRIBUTE):
                return bool(recorded == image.sha256)
            return await self._hash(key) == image.sha256
        except PermissionDeniedError:
            reason = f"{self.url}/{key} exists, and the credentials may not read it to compare"
            raise SinkPermanentError(reason, f"allow reading or use another sink, then {_RERUN_HINT}") from None

    async def _hash(self, key: str) -> str:
        digest = hashlib.sha256()
        async for chunk in (await obstore.get_async(self._store, key)).stream():
            digest.update(chunk)
        return digest.hexdigest()


def key_prefix(folder: str) -> str:
    """Return what the keys of all objects in a folder begin with; empty for none."""
    name = folder.strip("/")
    return f"{name}/" if name else ""


def open_store(url: str, parameter: str, *, max_retries: int) -> ObjectStore:
    """Return the store of a URL such as s3://bucket/folder, for a setting. Raises SettingsError."""
    options: Any = {"timeout": REQUEST_TIMEOUT, "allow_http": _allows_http()}
    try:
        return from_url(
            url,
            client_options=options,
            retry_config={"max_retries": max_retries, "retry_timeout": timedelta(seconds=120)},
        )
    except (BaseError, UnknownConfigurationKeyError, ValueError) as error:
        problem = f"cannot open {url} ({type(error).__name__})"
        hint = "check the bucket's name and the store's environment variables"
        raise SettingsError(parameter, problem, hint) from None


def store_error(error: Exception, url: str, setting: str) -> SinkTransientError | SinkPermanentError:
    """Return our error for an error of the store, whose text may contain secrets and is not repeated."""
    text = str(error)
    status = _status_of(text)
    if isinstance(error, MISSING_ERRORS) or status == 404:
        return SinkPermanentError(f"no bucket for {url}", f"create it or fix the {setting}, then {_RERUN_HINT}")
    if isinstance(error, _DENIED_ERRORS) or (status in (400, 401, 403) and _S3_TIMEOUT_CODE not in text):
        reason = f"{url} refuses these credentials (HTTP {status or 403})"
        return SinkPermanentError(reason, f"check the store's credentials and permissions, then {_RERUN_HINT}")
    if isinstance(error, (InvalidPathError, NotSupportedError)) or 300 <= status < 400 or status == 501:
        reason = f"{url} does not support this upload ({_error_label(error, status)})"
        return SinkPermanentError(reason, f"check the {setting} and the store's region, then {_RERUN_HINT}")
    return SinkTransientError(f"{url} is not reachable" if not status else f"{url} answered HTTP {status}")


def is_list_denied(error: Exception) -> bool:
    """Return whether the credentials are valid and only may not list. Invalid ones get a 403, too."""
    text = str(error)
    code = _CODE_IN_ERROR.search(text)
    return _status_of(text) == 403 and (code is None or code[1] == "AccessDenied")  # S3, Error Responses


def _status_of(text: str) -> int:
    """Return the HTTP status in an error of obstore, or 0."""
    match = _STATUS_IN_ERROR.search(text)
    return int(match[1]) if match else 0


def _error_label(error: Exception, status: int) -> str:
    return f"HTTP {status}" if status else type(error).__name__


def _allows_http() -> bool:
    """Return whether AWS_ALLOW_HTTP, obstore's own variable, allows a store without TLS."""
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")


def url_of(store: ObjectStore) -> str:
    """Return the base URL of a store that the caller created."""
    if isinstance(store, S3Store):
        url = f"s3://{store.config.get('bucket', '')}"
    elif isinstance(store, GCSStore):
        url = f"gs://{store.config.get('bucket', '')}"
    elif isinstance(store, AzureStore):
        url = f"az://{store.config.get('account_name', '')}/{store.config.get('container_name', '')}"
    else:
        return "memory://" if type(store).__name__ == "MemoryStore" else type(store).__name__
    return f"{url}/{store.prefix}" if store.prefix else url
