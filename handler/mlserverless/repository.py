"""Where models lie: a folder, or a prefix of an S3 bucket; a Lambda layer is a folder.

A repository lists the `model-settings.json` files under its root and opens a model's
artefact. Names are never joined into a path: what may be opened is what a settings file
says. boto3 is imported by the first question to S3.
"""

from __future__ import annotations

import io
import os
import posixpath
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, BinaryIO, Final, NamedTuple, Protocol, TypeVar

from mlserverless import deadline
from mlserverless.cache import Cache
from mlserverless.errors import (
    MLServerlessError,
    ModelLoadError,
    Replaced,
    RepositoryError,
    Unavailable,
    quote,
)
from mlserverless.settings import MODEL_SETTINGS_FILE, Listing, ModelSettings

WELL_KNOWN: Final = ("model.joblib", "model.pickle", "model.pkl", "model.skops")

_S3: Final = "s3://"
# Seconds that S3 has for a question about models and for an artefact, retries and waits included;
# less, where the request that waits has less.
_QUESTION: Final = 8.0
_DOWNLOAD: Final = 17.0
_LISTING_THREADS: Final = 16
_LISTINGS: Final = 3  # tries to read settings that are being replaced
_CHUNK: Final = 1 << 20  # bytes of a body at a time

# What S3 says, and whose move it is. Anything else goes by its HTTP status.
_NOT_THERE: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_ANOTHER: Final = frozenset({"PreconditionFailed", "412"})
_PASSING: Final = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError",
     "ServiceUnavailable", "RequestLimitExceeded", "BandwidthLimitExceeded",
     "OperationAborted", "ConditionalRequestConflict", "KMS.ThrottlingException"}
)  # fmt: skip


T = TypeVar("T")


class Stored(NamedTuple):
    """An object of S3 as it was listed."""

    etag: str
    size: int


@dataclass(frozen=True, slots=True)
class Artefact:
    """A model's bytes, open for reading from their start; the reader closes `file`.

    `stamp` is another one when the bytes are: an ETag, or time and size. `size` is how many
    bytes there are.
    """

    name: str
    file: BinaryIO
    stamp: str = ""
    size: int = 0


Wanted = tuple[str, str | None]  # a model's name and version


class Repository(Protocol):
    """What a registry needs to know of the place where models lie."""

    def models(self, wanted: Wanted | None = None) -> list[ModelSettings]:
        """Every model under the root; raises RepositoryError or Unavailable.

        Where a part of its folder's path is called like the wanted one, that one alone: what the
        others say of themselves is then not read.
        """

    def fetch(self, model: ModelSettings) -> Artefact:
        """The model's artefact; raises ModelLoadError when it is not there."""

    def stamp(self, model: ModelSettings) -> str:
        """The stamp that `fetch` would give, without its bytes; empty when it is not there."""

    def reconnect(self) -> None:
        """Forget connections that a snapshot has kept."""


def open_repository(root: str, cache_folder: str = "") -> Repository:
    """The repository that `root` names: a folder's path or `s3://bucket/prefix`.

    Processes share what they download in `cache_folder`, if there is one.
    """
    cache = Cache(cache_folder) if cache_folder else None
    return S3Repository(root, cache) if root.startswith(_S3) else FolderRepository(root, cache)


class _Sources(ABC):
    """Opens an artefact wherever its settings say it is; S3 is one client for all."""

    def __init__(self, cache: Cache | None = None) -> None:
        self.s3 = S3()
        self._cache = cache

    @abstractmethod
    def _places(self) -> tuple[list[str], Listing]:
        """The folders that hold settings, below the root, in the order of their parts.

        And the objects that were seen on the way.
        """

    @abstractmethod
    def _read(self, place: str, listing: Listing) -> ModelSettings:
        """What one of them says."""

    def _read_all(self, places: list[str], listing: Listing) -> list[ModelSettings]:
        return [self._read(place, listing) for place in places]

    def models(self, wanted: Wanted | None = None) -> list[ModelSettings]:
        """What was found, in the order of the places; see Repository."""
        places, listing = self._places()
        read: dict[str, ModelSettings] = {}
        called_like_it = [
            place
            for place in places
            if wanted is not None and (not place or wanted[0] in place.split("/"))
        ]
        for place in called_like_it:
            read[place] = found = self._read(place, listing)
            if (found.name, found.version) == wanted:
                return [found]
        others = [place for place in places if place not in read]
        read.update(zip(others, self._read_all(others, listing), strict=True))
        return [read[place] for place in places]

    def reconnect(self) -> None:
        """A new client, made at the next question; see Repository."""
        self.s3 = S3()

    def fetch(self, model: ModelSettings) -> Artefact:
        """What the model's `uri` names, wherever that is; see Repository."""
        if model.problem:
            raise ModelLoadError(model.problem)
        target = self._target(model)
        candidates = self._candidates(target, model)
        if target.startswith(_S3):
            found = self._downloaded(candidates, model.listing)
        else:
            found = _first(_open, candidates)
        if any(
            _stamp_of(path) != stored.etag
            for path, stored in model.listing.items()
            if not path.startswith(_S3)
        ):
            if found is not None:
                found.file.close()
            raise Replaced(f"{MODEL_SETTINGS_FILE} is being replaced")
        if found is not None:
            return found
        wanted = (
            quote(posixpath.basename(target.rstrip("/"))) if model.uri else " or ".join(WELL_KNOWN)
        )
        raise ModelLoadError(f"its artefact, {wanted}, is not in the repository")

    def stamp(self, model: ModelSettings) -> str:
        """The stamp of what `fetch` would open; see Repository."""
        target = self._target(model)
        candidates = self._candidates(target, model)
        for candidate in candidates:
            if candidate in model.listing and model.listing[candidate].etag:
                return str(model.listing[candidate].etag)
        if target.startswith(_S3):
            return self._within(_QUESTION, _first, self.s3.stamp, candidates) or ""
        return _first(_stamp_of, candidates) or ""

    def _downloaded(self, candidates: list[str], listing: Listing) -> Artefact | None:
        """The first object of S3 that is there: the listing knows which, or S3 is asked."""
        uri = next((each for each in candidates if each in listing), None)
        if uri is None:
            return self._within(_DOWNLOAD, _first, self.s3.open, candidates)
        listed: Stored = listing[uri]

        def fill(file: BinaryIO) -> None:
            self._within(_DOWNLOAD, self.s3.copy, uri, listed, file)

        if self._cache is not None and listed.etag:
            name, wait = f"{self.s3.endpoint} {uri}", deadline.left(_DOWNLOAD)
            file = self._cache.open(name, listed.etag, listed.size, fill, wait)
            if file is not None:
                return Artefact(posixpath.basename(uri), file, listed.etag, listed.size)
        return self._within(_DOWNLOAD, self.s3.open, uri, listed)

    def _within(self, seconds: float, work: Callable[..., T], *arguments: Any) -> T:
        """What work returns or raises, or Unavailable when it takes longer than so many seconds.

        In a thread, for a peer that sends a byte now and then defeats every timeout of a socket.
        """
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome.append((True, work(*arguments)))
            except BaseException as error:  # noqa: BLE001 - raised again, by whoever waits
                outcome.append((False, error))

        thread = threading.Thread(target=run, name="s3", daemon=True)
        thread.start()
        thread.join(deadline.left(seconds))
        if not outcome:
            self.s3.hang_up(thread)
            raise Unavailable("S3 takes too long to answer")
        returned, value = outcome[0]
        if not returned:
            raise value
        found: T = value
        return found

    @staticmethod
    def _target(model: ModelSettings) -> str:
        base, uri = model.location, model.uri or ""
        if uri.startswith(_S3) or os.path.isabs(uri):
            return uri
        if base.startswith(_S3):
            bucket, key = split_s3(base)
            return f"{_S3}{bucket}/{_joined(key, uri)}"
        return os.path.normpath(os.path.join(base, uri))

    @staticmethod
    def _candidates(target: str, model: ModelSettings) -> list[str]:
        """The artefact itself, or the well-known files of a folder."""
        target = target.rstrip("/")
        inside = [f"{target}/{name}" for name in WELL_KNOWN]
        if target.startswith(_S3):
            # a prefix cannot be told from a key without asking; an owner who says so is believed
            is_folder = model.uri is None or model.uri.endswith(("/", "."))
            return inside if is_folder else [target, *inside]
        return inside if os.path.isdir(target) else [target]


def _joined(key: str, uri: str) -> str:
    """A path from a key on; an empty part of the key is a part of its name."""
    parts = key.split("/") if key else []
    for part in uri.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _first(ask: Callable[[str], T | None], candidates: list[str]) -> T | None:
    return next((found for found in map(ask, candidates) if found), None)


def _open(path: str) -> Artefact | None:
    try:
        file = open(path, "rb")  # noqa: SIM115 - the reader closes it
        status = os.fstat(file.fileno())
        return Artefact(os.path.basename(path), file, _stamp(status), status.st_size)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its uri is no path"
        raise ModelLoadError(f"its artefact cannot be read: {why}") from error


def _stamp_of(path: str) -> str:
    try:
        return _stamp(os.stat(path))
    except (OSError, ValueError):
        return ""


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"


class FolderRepository(_Sources):
    """Every `**/model-settings.json` under a folder."""

    def __init__(self, root: str, cache: Cache | None = None) -> None:
        super().__init__(cache)
        self.root = os.path.abspath(root)

    def models(self, wanted: Wanted | None = None) -> list[ModelSettings]:
        """What was found, else the one model that the environment describes."""
        found = super().models(wanted)
        if not found:
            alone = ModelSettings.from_environment(self.root)
            return [alone] if alone else []
        return found

    def _places(self) -> tuple[list[str], Listing]:
        places = []
        for folder, folders, files in os.walk(self.root, onerror=_refuse, followlinks=False):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if MODEL_SETTINGS_FILE in files:
                places.append(os.path.relpath(folder, self.root).replace(os.sep, "/"))
        return ["" if place == "." else place for place in places], {}

    def _read(self, place: str, _: Listing) -> ModelSettings:
        folder = os.path.normpath(os.path.join(self.root, place))
        # a name of a folder may be no UTF-8, that of a model is written as JSON
        name = os.fsencode(os.path.basename(folder)).decode("utf-8", "backslashreplace")
        try:
            with open(os.path.join(folder, MODEL_SETTINGS_FILE), "rb") as file:
                status, raw = os.fstat(file.fileno()), file.read()
        except OSError as error:
            problem = f"{MODEL_SETTINGS_FILE} cannot be read: {error.strerror}"
            return ModelSettings(name=name, location=folder, problem=problem, folder=place)
        settings = ModelSettings.parse(raw, location=folder, folder_name=name)
        listing = {file.name: Stored(_stamp(status), status.st_size)}
        return replace(settings, listing=listing, folder=place)


def _refuse(error: OSError) -> None:
    raise RepositoryError(f"the model repository cannot be read: {error.strerror}") from error


class S3Repository(_Sources):
    """Every `model-settings.json` under a prefix of a bucket."""

    def __init__(self, root: str, cache: Cache | None = None) -> None:
        super().__init__(cache)
        self.bucket, prefix = split_s3(root)
        self.prefix = f"{prefix}/" if prefix else ""
        self._known: dict[str, tuple[Stored, ModelSettings]] = {}  # what was read, and of what

    def models(self, wanted: Wanted | None = None) -> list[ModelSettings]:
        """What lies under the prefix now: one listing, then the settings files at once."""
        return self._within(_QUESTION, self._as_listed, wanted)

    def _as_listed(self, wanted: Wanted | None) -> list[ModelSettings]:
        for _ in range(_LISTINGS - 1):
            try:
                return super().models(wanted)
            except Replaced:
                continue
        return super().models(wanted)

    def _read_all(self, places: list[str], listing: Listing) -> list[ModelSettings]:
        if len(places) < 2:
            return super()._read_all(places, listing)
        with ThreadPoolExecutor(min(_LISTING_THREADS, len(places))) as pool:
            return list(pool.map(self._read, places, repeat(listing)))

    def _places(self) -> tuple[list[str], Listing]:
        listing = self.s3.listing(self.bucket, self.prefix)
        start = len(f"{_S3}{self.bucket}/{self.prefix}")
        places = [
            uri[start:].removesuffix(MODEL_SETTINGS_FILE)
            for uri in listing
            if posixpath.basename(uri) == MODEL_SETTINGS_FILE
        ]
        # in the order in which a folder is walked
        return sorted(places, key=lambda place: place.split("/")), listing

    def _read(self, place: str, listing: Listing) -> ModelSettings:
        folder = f"{self.prefix}{place}".rstrip("/")
        location = f"{_S3}{self.bucket}/{folder}"
        name = posixpath.basename(folder) or self.bucket
        uri = f"{_S3}{self.bucket}/{self.prefix}{place}{MODEL_SETTINGS_FILE}"
        stored, settings = self._known.get(uri, (None, None))
        if settings is not None and stored == listing[uri]:
            return replace(settings, listing=listing, folder=place.rstrip("/"))
        raw = self.s3.read(uri, listing[uri])
        settings = ModelSettings.parse(raw, location=location, folder_name=name)
        self._known[uri] = (listing[uri], settings)
        return replace(settings, listing=listing, folder=place.rstrip("/"))


def split_s3(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/key/` as bucket and key, without slashes at either end."""
    bucket, _, key = uri.removeprefix(_S3).partition("/")
    return bucket, key.strip("/")


class S3:
    """The few questions to S3, asked by boto3, with every failure mapped to ours."""

    def __init__(self) -> None:
        self._client: Any = None
        self._lock = threading.Lock()
        self._bodies: dict[threading.Thread, Any] = {}  # what each is reading

    def listing(self, bucket: str, prefix: str) -> dict[str, Stored]:
        """Every object under `prefix` by its `s3://bucket/key`, sorted as S3 sorts them."""
        found = {}
        with self._asking(bucket):
            for page in self.client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=prefix
            ):
                if "KeyCount" not in page and page.get("Name") != bucket:
                    raise Unavailable(f"what answers for bucket {quote(bucket)} is not S3")
                for entry in page.get("Contents", ()):
                    uri = f"{_S3}{bucket}/{entry['Key']}"
                    found[uri] = Stored(entry.get("ETag", ""), entry["Size"])
        return found

    @property
    def endpoint(self) -> str:
        """Who is asked: buckets of the same name lie elsewhere, too."""
        return str(self.client.meta.endpoint_url)

    def read(self, uri: str, listed: Stored) -> bytes:
        """An object's bytes; Replaced when they are no longer as listed."""
        file = io.BytesIO()
        self.copy(uri, listed, file)
        return file.getvalue()

    def open(self, uri: str, listed: Stored | None = None) -> Artefact | None:
        """The object that `s3://bucket/key` names, or None; Replaced when it is not as listed."""
        file = io.BytesIO()
        etag = self.copy(uri, listed, file)
        if etag is None:
            return None
        size = file.tell()
        file.seek(0)
        return Artefact(posixpath.basename(uri), file, etag, size)

    def copy(self, uri: str, listed: Stored | None, file: BinaryIO) -> str | None:
        """Write an object's bytes and return its ETag, or None when there is no such key.

        Replaced when it is not as listed.
        """
        bucket, key = split_s3(uri)
        condition = {"IfMatch": listed.etag} if listed and listed.etag else {}
        me, size = threading.current_thread(), 0
        with self._asking(bucket):
            answer = self._unless_missing(self.client.get_object, bucket, key, **condition)
            if answer is None and listed is None:
                return None
            # whoever answered may know no conditions
            if answer is None or condition.get("IfMatch", answer["ETag"]) != answer["ETag"]:
                raise Replaced(f"an object of bucket {quote(bucket)} is being replaced")
            with closing(answer["Body"]) as body:  # not as a context: that is urllib3's own
                self._bodies[me] = body
                try:
                    while chunk := body.read(_CHUNK):
                        size += file.write(chunk)
                finally:
                    del self._bodies[me]
        if listed is not None and size != listed.size:
            raise Unavailable(f"S3 sent another length from bucket {quote(bucket)} than it listed")
        return str(answer["ETag"])

    def stamp(self, uri: str) -> str:
        """The ETag of an object, or nothing."""
        bucket, key = split_s3(uri)
        with self._asking(bucket):
            answer = self._unless_missing(self.client.head_object, bucket, key)
            return "" if answer is None else str(answer["ETag"])

    def region(self, bucket: str) -> str:
        """Where a bucket lies."""
        with self._asking(bucket):
            found = self.client.head_bucket(Bucket=bucket)
            return str(found.get("BucketRegion") or self.client.meta.region_name)

    def hang_up(self, thread: threading.Thread) -> None:
        """End the connection that a thread reads a body from, and with it the thread.

        A peer that sends a byte now and then would keep both for as long as it likes.
        """
        raw = getattr(self._bodies.get(thread), "_raw_stream", None)
        shut = getattr(raw, "shutdown", None)  # urllib3's, from 2.3 on
        if shut is not None:
            with suppress(Exception):  # it has ended by itself
                shut()

    def _unless_missing(self, ask: Any, bucket: str, key: str, **condition: str) -> Any:
        if not key:
            raise ModelLoadError("its uri names a bucket and no object")
        try:
            return ask(Bucket=bucket, Key=key, **condition)
        except self.client.exceptions.ClientError as error:
            if _code(error) in _NOT_THERE:
                return None
            raise

    @property
    def client(self) -> Any:
        """boto3's client, made at the first question; it is safe to share among threads."""
        with self._lock:
            if self._client is None:
                self._client = _client()
            return self._client

    @contextmanager
    def _asking(self, bucket: str) -> Iterator[None]:
        """Turn boto3's failures into ours: for good (RepositoryError) or passing (Unavailable)."""
        try:
            yield
        except (MLServerlessError, MemoryError):
            raise
        except Exception as error:
            mapped = _mapped(error, quote(bucket))
            if isinstance(mapped, RepositoryError):
                self._client = None  # it keeps the credentials that it was made with
            raise mapped from error


def _client() -> Any:
    try:
        import boto3  # noqa: PLC0415 - 200 ms that only S3's users should pay
        from botocore.config import Config  # noqa: PLC0415

        config = Config(
            connect_timeout=2,
            read_timeout=5,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=_LISTING_THREADS,
        )
        return boto3.Session().client("s3", config=config)
    except MemoryError:
        raise
    except Exception as error:
        why = type(error).__name__
        raise RepositoryError(f"S3 cannot be asked with this configuration ({why})") from error


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code") or "")


def _mapped(error: Exception, bucket: str) -> MLServerlessError:
    from botocore import exceptions as boto  # noqa: PLC0415 - only after boto3 was asked

    if isinstance(error, boto.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = _code(error) or f"HTTP {status}"
        if code in _ANOTHER:
            return Replaced(f"an object of bucket {bucket} is being replaced")
        sentence = _FOR_GOOD.get(code)
        elsewhere = sentence is None and 300 <= status < 400  # a portal's way, or S3's for a while
        if code in _PASSING or elsewhere or status >= 500 or status == 429:
            return Unavailable(f"S3 cannot answer for bucket {bucket} now ({quote(code)})")
        sentence = sentence or "S3 refused bucket {bucket} ({code})"
        return RepositoryError(sentence.format(bucket=bucket, code=quote(code)))
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return RepositoryError("there are no credentials to read S3 with")
    if isinstance(error, boto.ParamValidationError):
        return RepositoryError(f"{bucket} is not the name of a bucket")
    if isinstance(error, boto.BotoCoreError | OSError):
        return Unavailable(f"S3 is out of reach for bucket {bucket}")
    return Unavailable(f"what answers for bucket {bucket} is not S3 ({type(error).__name__})")


_DENIED: Final = "access to bucket {bucket} is denied ({code})"
_REGION: Final = "bucket {bucket} lies in another region ({code})"
_FOR_GOOD: Final[dict[str, str]] = {
    "NoSuchBucket": "bucket {bucket} does not exist",
    "404": "bucket {bucket} does not exist",
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "ExpiredToken": _DENIED,
    "InvalidAccessKeyId": _DENIED,
    "InvalidToken": _DENIED,
    "SignatureDoesNotMatch": _DENIED,
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
}
