"""Where models lie: a folder, or a prefix of an S3 bucket; a Lambda layer is a folder.

A repository lists the `model-settings.json` files under its root and opens a model's
artefact. Names are never joined into a path: what may be opened is what a settings file
says. boto3 is imported by the first question to S3.
"""

from __future__ import annotations

import io
import os
import posixpath
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import Any, BinaryIO, Final, NamedTuple, Protocol, TypeVar

from mlserverless import deadline
from mlserverless.cache import Cache, Interrupted
from mlserverless.errors import (
    NO_THREAD_MESSAGE,
    MLServerlessError,
    ModelLoadError,
    Replaced,
    RepositoryError,
    Unavailable,
    quote,
)
from mlserverless.settings import (
    MODEL_SETTINGS_FILE,
    Listing,
    ModelSettings,
    memory_of_function,
)

WELL_KNOWN: Final = ("model.joblib", "model.pickle", "model.pkl", "model.skops")

_S3: Final = "s3://"
# A call to S3 is given up if this time passes and fewer than _MIN_PROGRESS_BYTES arrive in it,
# retries included. A request's own deadline ends the call earlier.
_METADATA_STALL_SECONDS: Final = 8.0
_DOWNLOAD_STALL_SECONDS: Final = 17.0
_MIN_PROGRESS_BYTES: Final = 262_144
MAX_CALL_SECONDS: Final = 900.0  # where no request waits (INIT, a poll): Lambda's longest timeout
_HANG_UP_SECONDS: Final = 0.2  # for the last bytes of a connection that was shut down

_MAX_LISTING_THREADS: Final = 16
_MAX_LISTING_THREADS_BELOW_1_GB: Final = 4  # RLIMIT_DATA counts 8 MB for each thread's stack
_LISTINGS: Final = 3  # tries to read settings that are being replaced
_CHUNK_BYTES: Final = (
    65_536  # of a body in one read; small, so that a slow connection shows progress
)
_TOO_LONG: Final = "S3 takes too long to respond"
_MAX_PARTIAL_DOWNLOADS: Final = 4  # retained in memory if there is no cache

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


class S3Listing(dict[str, Stored]):
    """Every object below `root`, an `s3://bucket/prefix/` URI: no other key exists there."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root


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

    def forget(self, model: ModelSettings) -> None:
        """Remove the model's artifact from the download cache, because it failed to load."""

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

    def __init__(self, root: str, cache: Cache | None = None) -> None:
        self.root = root  # a folder's path or an `s3://bucket/prefix` URI
        self.s3 = S3()
        self._cache = cache
        # the first bytes of artifacts whose download was interrupted, with their ETag, by URI
        self._partial: dict[str, tuple[str, io.BytesIO]] = {}

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
        """Return the models below the root, else the one that MLSERVER_MODEL_* describes."""
        places, listing = self._places()
        if not places:
            alone = ModelSettings.from_environment(self.root)
            return [replace(alone, listing=listing)] if alone else []
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
        target = locate_artifact(model)
        candidates = self._candidates(target, model)
        if target.startswith(_S3):
            found = self._download(candidates, model.listing)
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
        raise ModelLoadError(describe_missing_artifact(model))

    def stamp(self, model: ModelSettings) -> str:
        """The stamp of what `fetch` would open; see Repository."""
        target = locate_artifact(model)
        candidates = self._candidates(target, model)
        if target.startswith(_S3):
            found = self._find_stored(candidates, model.listing)
            return found[1].etag if found else ""
        return _first(_stamp_of, candidates) or ""

    def forget(self, model: ModelSettings) -> None:
        """Close and delete the downloaded artifact; see Repository."""
        target = locate_artifact(model)
        if self._cache is not None and target.startswith(_S3):
            for uri in self._candidates(target, model):
                self._cache.forget(self._cache_key(uri))

    def _find_stored(self, candidates: list[str], listing: Listing) -> tuple[str, Stored] | None:
        """Return the first candidate that exists; S3 is called only for what was not listed."""
        for uri in candidates:
            if uri in listing:
                return uri, listing[uri]
        if isinstance(listing, S3Listing):
            candidates = [uri for uri in candidates if not uri.startswith(listing.root)]
        if not candidates:
            return None
        return self._call_with_timeout(_METADATA_STALL_SECONDS, self._describe_first, candidates)

    def _describe_first(self, candidates: list[str]) -> tuple[str, Stored] | None:
        for uri in candidates:
            stored = self.s3.describe(uri)
            if stored is not None:
                return uri, stored
        return None

    def _download(self, candidates: list[str], listing: Listing) -> Artefact | None:
        """Download the first candidate that exists, through the cache if there is one.

        A download that ends early raises Interrupted; the next call continues it.
        """
        found = self._find_stored(candidates, listing)
        if found is None:
            return None
        uri, stored = found

        def fill(file: BinaryIO) -> None:
            try:
                self._call_with_timeout(_DOWNLOAD_STALL_SECONDS, self.s3.copy, uri, stored, file)
            except Replaced:
                raise
            except Unavailable as error:
                received = file.tell()
                if stored.etag and 0 < received < stored.size:
                    raise Interrupted(
                        f"{error}: {received} of {stored.size} bytes of the artifact have "
                        "arrived; the next request continues the download"
                    ) from error
                raise

        file = None
        if self._cache is not None and stored.etag:
            wait = deadline.left(MAX_CALL_SECONDS)
            key = self._cache_key(uri)
            file = self._cache.open(key, stored.etag, stored.size, fill, wait)
        if file is None:
            file = self._download_to_memory(uri, stored, fill)
        return Artefact(posixpath.basename(uri), file, stored.etag, stored.size)

    def _cache_key(self, uri: str) -> str:
        return f"{self.s3.endpoint} {uri}"

    def _download_to_memory(
        self, uri: str, stored: Stored, fill: Callable[[BinaryIO], None]
    ) -> BinaryIO:
        etag, file = self._partial.pop(uri, ("", io.BytesIO()))
        if etag != stored.etag:
            file = io.BytesIO()
        try:
            fill(file)
        except Interrupted:
            self._partial[uri] = stored.etag, file
            for oldest in list(self._partial)[:-_MAX_PARTIAL_DOWNLOADS]:
                self._partial.pop(oldest, None)
            raise
        except MemoryError:
            self._partial.clear()
            raise
        file.seek(0)
        return file

    def _call_with_timeout(
        self, stall_seconds: float, work: Callable[..., T], *arguments: Any
    ) -> T:
        """Return or raise what `work` does, before the deadline of the request that waits.

        Raises Unavailable at the deadline, or if fewer than _MIN_PROGRESS_BYTES arrive in
        `stall_seconds`. `work` runs on a thread, because a server that sends one byte now and
        then defeats the timeouts of a socket. After an error that thread sends and writes nothing.
        """
        call = _Call()
        outcome: list[Any] = []

        def run() -> None:
            _thread.call = call
            try:
                outcome.append((True, work(*arguments)))
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                outcome.append((False, error))

        thread = threading.Thread(target=run, name="s3", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Unavailable(f"S3 cannot be called: {NO_THREAD_MESSAGE}") from error
        left = deadline.left(MAX_CALL_SECONDS)
        # the rest of the time is for the error, which must reach the client
        end = time.monotonic() + left - min(left / 4, 2 * _HANG_UP_SECONDS)
        while True:
            received, seconds = call.received, end - time.monotonic()
            thread.join(max(0.0, min(stall_seconds, seconds)))
            has_stalled = call.received - received < _MIN_PROGRESS_BYTES
            if outcome or seconds <= stall_seconds or has_stalled:
                break
        in_time = bool(outcome)
        if not in_time:
            call.hang_up()
            thread.join(_HANG_UP_SECONDS)
        call.end()
        if not outcome:
            raise Unavailable(_TOO_LONG)
        returned, value = outcome[0]
        if returned:
            found: T = value
            return found
        raise value if in_time else Unavailable(_TOO_LONG)

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


def locate_artifact(model: ModelSettings) -> str:
    """Return the path, or the `s3://bucket/key` URI, that a model's settings name.

    Without a `uri` it is the model's folder.
    """
    base, uri = model.location, model.uri or ""
    if uri.startswith(_S3) or os.path.isabs(uri):
        return uri
    if base.startswith(_S3):
        bucket, key = split_s3(base)
        return f"{_S3}{bucket}/{_joined(key, uri)}"
    return os.path.normpath(os.path.join(base, uri))


def describe_missing_artifact(model: ModelSettings) -> str:
    """Return the message for a model whose artifact does not exist, without its folder."""
    name = posixpath.basename(locate_artifact(model).rstrip("/"))
    wanted = quote(name) if model.uri else " or ".join(WELL_KNOWN)
    return f"its artifact, {wanted}, is not in the repository"


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
        raise ModelLoadError(f"its artifact cannot be read: {why}") from error


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
        super().__init__(os.path.abspath(root), cache)

    def _places(self) -> tuple[list[str], Listing]:
        places = []
        for folder, folders, files in os.walk(self.root, onerror=_refuse, followlinks=False):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if MODEL_SETTINGS_FILE in files:
                places.append(os.path.relpath(folder, self.root).replace(os.sep, "/"))
        return ["" if place == "." else place for place in places], {}

    def _read(self, place: str, _: Listing) -> ModelSettings:
        folder = os.path.normpath(os.path.join(self.root, place))
        # a folder's name may not be valid UTF-8, but a model's name is written as JSON
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
        super().__init__(root.rstrip("/"), cache)
        self.bucket, prefix = split_s3(root)
        self.prefix = f"{prefix}/" if prefix else ""
        self._known: dict[str, tuple[Stored, ModelSettings]] = {}  # what was read, and of what

    def models(self, wanted: Wanted | None = None) -> list[ModelSettings]:
        """Return the models below the prefix: one listing, then the settings files in parallel."""
        return self._call_with_timeout(_METADATA_STALL_SECONDS, self._as_listed, wanted)

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
        memory = memory_of_function()
        is_small = memory is not None and memory < 1024
        most = _MAX_LISTING_THREADS_BELOW_1_GB if is_small else _MAX_LISTING_THREADS
        try:
            with ThreadPoolExecutor(
                min(most, len(places)), initializer=_join_call, initargs=(_current_call(),)
            ) as pool:
                return list(pool.map(self._read, places, repeat(listing)))
        except RuntimeError:  # no more threads can be started; what was read is in _known
            return super()._read_all(places, listing)

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


class _Call:
    """One call to S3: what its threads have received, and its end.

    A thread may outlive its call, because Python cannot stop it. After `end` it can neither
    send a request nor write.
    """

    def __init__(self) -> None:
        self.received = 0  # bytes of bodies, by all threads of the call
        self._responses: dict[threading.Thread, Any] = {}
        self._lock = threading.Lock()
        self._is_over = False

    def check(self) -> None:
        """Raise Unavailable if the call is over."""
        if self._is_over:
            raise Unavailable(_TOO_LONG)

    def add_response(self, response: Any) -> None:
        """Let `hang_up` end the transfer of this response of urllib3."""
        with self._lock:
            self.check()
            self._responses[threading.current_thread()] = response

    def write(self, file: BinaryIO, chunk: bytes) -> None:
        """Write a whole chunk of a body; a raw file may take less than that at a time."""
        with self._lock:
            self.check()
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
            self.received += len(chunk)

    def add_received(self, size: int) -> None:
        """Count bytes that are not written to a file: those of a listing."""
        with self._lock:
            self.received += size

    def rewind(self, file: BinaryIO) -> None:
        """Start to write a file again."""
        with self._lock:
            self.check()
            file.seek(0)

    def hang_up(self) -> None:
        """Shut down the connections of the call, so that no thread reads from them any more."""
        with self._lock:
            responses = list(self._responses.values())
        for response in responses:
            with suppress(Exception):  # it has ended already
                _shut_down(response)

    def end(self) -> None:
        """Refuse everything that the call's threads do from now on."""
        with self._lock:
            self._is_over = True
        self.hang_up()


def _shut_down(response: Any) -> None:
    if hasattr(response, "shutdown"):  # urllib3 2.3 and later
        response.shutdown()
    else:
        # what `shutdown` does; the connection itself may have no socket any more
        response._fp.fp.raw._sock.shutdown(socket.SHUT_RD)  # noqa: SLF001


_thread: Final = threading.local()


def _join_call(call: _Call) -> None:
    _thread.call = call


def _current_call() -> _Call:
    """Return the call of this thread, or a new one that nothing ends."""
    return getattr(_thread, "call", None) or _Call()


class S3:
    """The few operations of S3 that are needed, by boto3, with every failure mapped to ours."""

    def __init__(self) -> None:
        self._client: Any = None
        self._lock = threading.Lock()

    def listing(self, bucket: str, prefix: str) -> S3Listing:
        """Return every object under `prefix` by its `s3://bucket/key`, in the order of S3."""
        found = S3Listing(f"{_S3}{bucket}/{prefix}")
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
        """The URL of S3; another one may have a bucket of the same name."""
        return str(self.client.meta.endpoint_url)

    def read(self, uri: str, listed: Stored) -> bytes:
        """Return an object's bytes; raises Replaced if it is not the listed one."""
        file = io.BytesIO()
        self.copy(uri, listed, file)
        return file.getvalue()

    def copy(self, uri: str, listed: Stored, file: BinaryIO) -> None:
        """Write an object's bytes to `file`, from its position on: a file may hold the first ones.

        Raises Replaced if the object is not the listed one, Unavailable if S3 sends too few bytes
        or too many. What was written until then is correct.
        """
        bucket, key = split_s3(uri)
        call, offset = _current_call(), file.tell()
        options = {"IfMatch": listed.etag} if listed.etag else {}
        if offset:
            options["Range"] = f"bytes={offset}-"
        replaced = f"an object of bucket {quote(bucket)} is being replaced"
        another_length = f"S3 sent another length from bucket {quote(bucket)} than it listed"
        with self._asking(bucket):
            response = self._unless_missing(self.client.get_object, bucket, key, **options)
            if response is None:
                raise Replaced(replaced)
            with closing(response["Body"]) as body:  # not as a context: that is urllib3's own
                if options.get("IfMatch", response["ETag"]) != response["ETag"]:
                    raise Replaced(replaced)  # the server ignores If-Match
                if offset and not response.get("ContentRange", "").startswith(f"bytes {offset}-"):
                    call.rewind(file)  # the server ignores Range and sends the whole object
                while chunk := body.read(_CHUNK_BYTES):
                    if file.tell() + len(chunk) > listed.size:
                        raise Unavailable(another_length)
                    call.write(file, chunk)
        if file.tell() != listed.size:
            raise Unavailable(another_length)

    def describe(self, uri: str) -> Stored | None:
        """Return ETag and size of an object, or None if it does not exist.

        It requests one byte by GET, because an error response to HEAD has no body and no code.
        """
        bucket, key = split_s3(uri)
        with self._asking(bucket):
            try:
                response = self._unless_missing(
                    self.client.get_object, bucket, key, Range="bytes=0-0"
                )
            except self.client.exceptions.ClientError as error:
                if _code(error) == "InvalidRange":
                    return Stored("", 0)
                raise
            if response is None:
                return None
            with closing(response["Body"]) as body:
                _, _, size = response.get("ContentRange", "").partition("/")
                if size:
                    with suppress(Exception):  # so that the connection can be used again
                        body.read()
                return Stored(response["ETag"], int(size or response["ContentLength"]))

    def region(self, bucket: str) -> str:
        """Where a bucket lies."""
        with self._asking(bucket):
            found = self.client.head_bucket(Bucket=bucket)
            return str(found.get("BucketRegion") or self.client.meta.region_name)

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
            max_pool_connections=_MAX_LISTING_THREADS,
        )
        client = boto3.Session().client("s3", config=config)
        http_session = getattr(client, "_endpoint").http_session  # noqa: B009 - boto3 has no other way
        client.meta.events.register("before-send.s3", partial(_send, http_session))
    except MemoryError:
        raise
    except Exception as error:
        why = type(error).__name__
        raise RepositoryError(f"S3 cannot be asked with this configuration ({why})") from error
    return client


def _send(http_session: Any, request: Any, **_: Any) -> Any:
    """Send a request for boto3 so that `_Call.hang_up` can end it while its body is read."""
    from botocore.exceptions import HTTPClientError  # noqa: PLC0415 - boto3 is imported by now

    call, is_stream = _current_call(), request.stream_output
    call.check()
    request.stream_output = True
    response = http_session.send(request)
    try:
        call.add_response(response.raw)
    except Unavailable:
        response.raw.close()
        raise
    if not is_stream:
        try:
            call.add_received(len(response.content))
        except Exception as error:
            raise HTTPClientError(error=error) from error  # boto3 tries again
    return response


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
