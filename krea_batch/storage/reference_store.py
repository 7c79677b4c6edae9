"""Uploads local reference images to an object store, and signs the URLs from which the gateway fetches them.

An object's name is that of its content, so each content is uploaded once, by whichever run comes first, and nothing
is ever overwritten. Anyone who has a signed URL can read the object until it expires. It is made just before a job
is submitted, and is kept nowhere: the ledger, the results and the log have the URL of the object, unsigned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from krea_batch.errors import SettingsError
from krea_batch.settings import is_loopback
from krea_batch.storage.image_types import MEDIA_TYPES
from krea_batch.storage.sinks import SinkPermanentError
from krea_batch.storage.sinks.object_store import (
    MISSING_ERRORS,
    is_list_denied,
    key_prefix,
    open_store,
    store_error,
    url_of,
)

MAX_UPLOADS = 8  # chosen: 256 MB of the largest images
STORE_RETRIES = 5  # chosen: an upload that fails stops the run, so that it waits through a short outage
SETTING = "references"
_RERUN_HINT = "then run again to resume"


class ReferenceStore:
    """Stores reference images in S3, Google Cloud Storage or Azure, as `<prefix>/<SHA-256>.png`.

    Credentials are those of the store, from its usual environment or its constructor; they must allow to read and to
    write. `url` is the base URL in the results. Raises SettingsError for a store that cannot sign URLs.
    """

    def __init__(self, store: ObjectStore, prefix: str = "", *, url: str = "") -> None:
        if not isinstance(store, S3Store | GCSStore | AzureStore):
            problem = f"a {type(store).__name__} cannot sign URLs, from which the gateway fetches the images"
            raise SettingsError(SETTING, problem, "use s3://bucket/folder, gs://… or az://…")
        self._store = store
        self._prefix = key_prefix(prefix)
        self.url = (url or f"{url_of(store)}/{self._prefix}").rstrip("/")
        self._uploads = asyncio.Semaphore(MAX_UPLOADS)

    @classmethod
    def from_url(cls, url: str) -> ReferenceStore:
        """Return the store of a URL such as s3://bucket/folder. Raises SettingsError."""
        return cls(open_store(url, SETTING, max_retries=STORE_RETRIES), url=url)

    async def check(self) -> None:
        """Check that URLs can be signed, and that the bucket is there.

        Raises SinkPermanentError, SinkTransientError.
        """
        (signed,) = (await self.sign(["0" * 64 + ".png"], timedelta(hours=1))).values()
        parts = urlsplit(signed)
        if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            reason = f"the URLs of {self.url} are not https, which the API requires"
            raise SinkPermanentError(reason, f"use an endpoint with https, {_RERUN_HINT}")
        try:
            await obstore.list_with_delimiter_async(self._store, self._prefix or None)
        except (BaseError, *MISSING_ERRORS) as error:
            if not is_list_denied(error):  # The upload will show whether these credentials may write.
                raise store_error(error, self.url, SETTING) from None

    async def ensure(self, name: str, read: Callable[[], Awaitable[bytes]] | None) -> None:
        """Upload the content with this name, unless the store has it.

        `read` returns its bytes; None if they are not at hand. Raises SinkPermanentError, SinkTransientError, and
        what `read` raises.
        """
        key = self._prefix + name
        async with self._uploads:
            try:
                if await self._size_bytes(key) is not None:
                    return
                if read is None:
                    reason = f"the reference image {self.url}/{name} is not there"
                    raise SinkPermanentError(reason, "run with the job file that names it, or upload it again")
                await self._upload(key, await read())
            except (BaseError, *MISSING_ERRORS) as error:
                raise store_error(error, self.url, SETTING) from None

    async def _upload(self, key: str, data: bytes) -> None:
        attributes: Any = {"Content-Type": MEDIA_TYPES[key[key.rindex(".") :]]}
        with suppress(AlreadyExistsError):  # by another run, or the answer to our own upload was lost
            await obstore.put_async(self._store, key, data, mode="create", attributes=attributes, use_multipart=False)
        # The signed URL allows what these credentials allow, so the gateway can read it only if they can.
        if await self._size_bytes(key) != len(data):
            reason = f"{self.url} does not give back the reference image {key} that was uploaded"
            raise SinkPermanentError(reason, f"allow these credentials to read objects, {_RERUN_HINT}")

    async def _size_bytes(self, key: str) -> int | None:
        """Return the size of an object, or None if there is none."""
        try:
            head = await obstore.head_async(self._store, key)
        except (FileNotFoundError, PermissionDeniedError):
            return None  # S3 responds with 403 for missing objects if the credentials may not list
        return int(head["size"])

    async def sign(self, names: Iterable[str], lifetime: timedelta) -> dict[str, str]:
        """Return a signed URL for each name. Raises SinkPermanentError, SinkTransientError."""
        names = list(names)
        try:
            urls: Any = await obstore.sign_async(
                self._store, "GET", [self._prefix + name for name in names], lifetime
            )
        except (BaseError, *MISSING_ERRORS, ValueError) as error:
            reason = f"cannot sign URLs of {self.url} ({type(error).__name__})"
            raise SinkPermanentError(reason, f"check the store's credentials, {_RERUN_HINT}") from None
        return dict(zip(names, urls, strict=True))
