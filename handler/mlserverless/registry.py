"""Models in memory: each found once, loaded once, with its state and the reason for it.

What lies in the repository is looked at again by the index, in poll mode every so often, and, at
most every half minute, when what is asked for has failed. A model that serves goes on serving:
outside poll mode nothing but load and unload changes it, in poll mode what has loaded in its place.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakSet

from mlserverless import deadline
from mlserverless.collector import paused
from mlserverless.errors import (
    REPOSITORY_TIMEOUT_MESSAGE,
    MLServerlessError,
    ModelLoadError,
    NotFound,
    Replaced,
    RepositoryError,
    Unavailable,
    quote,
)
from mlserverless.journal import milliseconds, places
from mlserverless.repository import Artefact, Repository, Wanted
from mlserverless.settings import ModelSettings, Settings
from mlserverless.versions import SortKey, sort_key

if TYPE_CHECKING:
    from mlserverless.runtime import Model

log = logging.getLogger(__name__)

_REREADS: Final = 2  # of settings whose artefact is another one by now

RETRY_AFTER: Final = 30.0  # seconds until a load that failed for good is tried again
_AGAIN: Final = 600.0  # the same, of what should take the place of a model that serves
_PATIENCE: Final = 2.0  # seconds that a request waits for a poll, which then goes on without it

_NO_MEMORY: Final = "the model repository needs more memory than there is"


class ModelState(NamedTuple):
    """One line of the repository index."""

    name: str
    version: str | None
    ready: bool
    reason: str


class Entry:
    """One version of one model: found, perhaps loaded, perhaps failed, perhaps unloaded."""

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.lock = threading.Lock()
        self.model: Model | None = None
        self.stamp = ""  # of the bytes that the model was made of
        self.size = 0  # of these bytes
        self.used = 0  # when it was last asked for: a count of requests
        self.evicted = False  # it had to leave memory, and will come back when it is asked for
        self.swift = 0  # how many small requests in a row were answered at once
        self.swift_bytes = 0  # of the largest of them
        self.unloaded = False
        self.folders: tuple[str, ...] = ()  # all that have this name and version, if several
        self.outcome: MLServerlessError | None = None  # of the last try
        self.failure: MLServerlessError | None = None  # why it, or what should replace it, is bad
        self.failed_at = 0.0
        self.refused: tuple[ModelSettings, str] | None = None  # what should have replaced it

    @property
    def name(self) -> str:
        """As its owner calls it."""
        return self.settings.name

    @property
    def version(self) -> str | None:
        """As its owner calls it; None is the default."""
        return self.settings.version

    @cached_property
    def order(self) -> SortKey:
        """The sort key of its version; the highest version of a model is the default."""
        return sort_key(self.version)

    @property
    def failed(self) -> bool:
        """Whether something is known to stand against serving it."""
        return self.model is None and bool(self.settings.problem or self.failure)

    @property
    def is_loaded(self) -> bool:
        """Whether it is in memory, or was evicted and will be loaded by the next request."""
        if self.unloaded:
            return False
        return self.model is not None or (self.evicted and not self.failed)

    @property
    def state(self) -> ModelState:
        """Its line of the index: ready unless something is known to stand against it."""
        model = self.model
        if model is not None and model.fault is not None:
            return ModelState(self.name, self.version, False, model.fault)
        reason = self.settings.problem or (str(self.failure) if self.failure else "")
        if self.unloaded:
            reason = "unloaded"
        # new bytes that do not load leave a model that serves, and a reason beside it
        ready = self.model is not None or not reason
        reasons = [each for each in (reason, self.conflict) if each]
        return ModelState(self.name, self.version, ready, "; ".join(reasons))

    @property
    def conflict(self) -> str:
        """The message about several folders with this name and version, or an empty string.

        It has paths relative to the repository's root, never those of the server.
        """
        if not self.folders:
            return ""
        shown = ", ".join(map(_show_folder, self.folders))
        return (
            f"several folders have this name and version ({shown}): "
            f"{_show_folder(self.settings.folder)} is served, the others are ignored; "
            "change the name or the version of all but one"
        )


_ORDER: Final = attrgetter("order")  # computed once: requests without a version compare it

Versions = dict[str | None, Entry]
Models = dict[str, Versions]


class Registry:
    """The models of one repository. Safe to share among threads."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self._repository = repository
        self._settings = settings
        self._lock = threading.Lock()
        self._models: Models | None = None
        self._early: Models = {}  # asked for before the others were looked for
        self._looked_at = 0.0  # when the repository was last looked through
        self._looking = threading.Lock()
        self._polls = settings.model_control_mode == "poll"
        self._uses = itertools.count(1)
        self._in_memory: WeakSet[Entry] = WeakSet()  # what a newer one has replaced goes by itself
        self._making_room = threading.Lock()  # a load may happen under the other
        self._preloads = False  # readiness includes the models that were there at start-up
        self._preloaded: dict[str, frozenset[str | None]] | None = None  # versions by name
        self._reported_conflicts: set[str] = set()

    # ── finding ─────────────────────────────────────────────────────────────────────────

    def find(self, name: str, version: str | None = None) -> Entry:
        """The entry of a model, its default version when none is named; NotFound else."""
        if self._polls:
            self._poll()
        entry = self._known(name, version)
        if self._worth_another_look(entry):
            self._refresh()
            entry = self._chosen(name, version)
        if entry is not None:
            return entry
        if version is None:
            raise NotFound(f"Model {quote(name)} not found")
        raise NotFound(f"Model {quote(name)} with version {quote(version)} not found")

    def at_hand(self, name: str, version: str | None) -> Entry | None:
        """What `find` returns, where it need ask nobody and the model is in memory."""
        if self._polls and self._is_time(self._settings.poll_seconds):
            return None
        if self._models is None:
            entry = self._early.get(name, {}).get(version)
        else:
            entry = self._chosen(name, version)
        return entry if entry is not None and entry.model is not None else None

    def versions(self, name: str) -> list[str]:
        """Every version that exists of a model, in ascending order."""
        present = [
            version
            for version, entry in self._found().get(name, {}).items()
            if not entry.unloaded and version is not None
        ]
        return sorted(present, key=sort_key)

    def _known(self, name: str, version: str | None) -> Entry | None:
        if self._models is None and not self._polls:
            entry = self._found_early(name, version)
            if entry is not None:  # one without a version is the default, whatever else there is
                return entry
        return self._chosen(name, version)

    def _chosen(self, name: str, version: str | None) -> Entry | None:
        """Of all that was found: the version that is named, else the default."""
        versions = self._found().get(name, {})
        if version is not None:
            entry = versions.get(version)
            return None if entry is None or entry.unloaded else entry
        present = [entry for entry in versions.values() if not entry.unloaded]
        if self._polls:  # a bad new version leaves the old one serving
            present = [entry for entry in present if not entry.failed] or present
        if len(present) > 1:
            return max(present, key=_ORDER)
        return present[0] if present else None

    def _found(self) -> Models:
        # read without the lock: a reference is replaced whole, never changed while shared
        models = self._models
        if models is None:
            with self._locked():
                models = self._models
                if models is None:
                    models = self._keep(_group(self._scan()))
        return models

    def _known_entries(self) -> list[Entry]:
        """Return what was found until now; the repository is not read."""
        return _entries(self._early if self._models is None else self._models)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, under which another request may wait for S3.

        Raises Unavailable if it is not free in the time that this request has left.
        """
        if not self._lock.acquire(timeout=deadline.left(threading.TIMEOUT_MAX)):
            raise Unavailable(REPOSITORY_TIMEOUT_MESSAGE)
        try:
            yield
        finally:
            self._lock.release()

    def _scan(self, wanted: Wanted | None = None) -> list[ModelSettings]:
        """Read the repository; raises RepositoryError or Unavailable and nothing else."""
        try:
            with _map_repository_errors():
                return self._repository.models(wanted)
        except MemoryError as error:
            raise Unavailable(_NO_MEMORY) from error

    def _found_early(self, name: str, version: str | None) -> Entry | None:
        """A cold start's way to one model: what the others are costs it nothing.

        None when it took all of them to find it; `_found` has them then.
        """
        with self._locked():
            entry = self._early.get(name, {}).get(version)
            if entry is None and self._models is None:
                found = self._scan((name, version))
                is_wanted = [(name, version)] == [(each.name, each.version) for each in found]
                if is_wanted and found[0].problem:
                    # another folder with that name may have valid settings
                    found, is_wanted = self._scan(), False
                if is_wanted:
                    entry = self._early.setdefault(name, {})[version] = Entry(found[0])
                    self._looked_at = time.monotonic()
                else:
                    self._keep(_group(found))
            return entry

    # ── looking again ───────────────────────────────────────────────────────────────────

    def _is_time(self, seconds: float) -> bool:
        return time.monotonic() >= self._looked_at + seconds

    def _worth_another_look(self, entry: Entry | None) -> bool:
        """Whether what is not there, or has failed, may have been mended since."""
        if self._polls or not self._is_time(RETRY_AFTER):
            return False
        if entry is not None:
            return entry.failed
        entries = _entries(self._models or {})
        return not entries or any(each.settings.problem for each in entries)

    def _poll(self) -> None:
        """Look again when it is time to; one request waits a little for it, the others go on."""
        if self._models is None or not self._is_time(self._settings.poll_seconds):
            return
        if self._looking.acquire(blocking=False):
            looking = threading.Thread(target=self._look, name="poll", daemon=True)
            try:
                looking.start()
            except (RuntimeError, MemoryError):  # the process has no thread left
                self._looked_at = time.monotonic()
                self._looking.release()
                log.warning("the repository was not polled: no thread can be started")
                return
            looking.join(min(_PATIENCE, deadline.left(2 * _PATIENCE) / 2))

    def _look(self) -> None:
        try:
            self._swap(_group(self._scan()))
        except Exception as error:  # noqa: BLE001 - whatever it is, what is known goes on serving
            why = str(error) if isinstance(error, MLServerlessError) else type(error).__name__
            log.warning("the repository could not be looked through: %s", why)
        finally:
            self._looked_at = time.monotonic()
            self._looking.release()

    def _refresh(self) -> None:
        """Look through the repository now."""
        if not self._polls:
            found = _group(self._scan())
            with self._locked():
                self._keep(found)
        elif self._looking.acquire(timeout=deadline.left(threading.TIMEOUT_MAX)):
            try:
                self._swap(_group(self._scan()))
            finally:
                self._looking.release()
        else:
            raise Unavailable(REPOSITORY_TIMEOUT_MESSAGE)

    def _keep(self, fresh: Models) -> Models:
        """Take what was found; what serves stays as it is, and so does what is unchanged."""
        known = self._known_entries()
        for old in known:
            new = fresh.get(old.name, {}).get(old.version)
            unchanged = new is not None and new.settings == old.settings
            old.folders = () if new is None else new.folders
            if unchanged or old.model is not None or old.evicted:
                fresh.setdefault(old.name, {})[old.version] = old
        for name in {old.name for old in known if old.unloaded} & fresh.keys():
            for entry in fresh[name].values():  # whatever has come since
                entry.unloaded = True
        self._models, self._early = fresh, {}
        self._looked_at = time.monotonic()
        self._report_conflicts(fresh)
        return fresh

    def _report_conflicts(self, models: Models) -> None:
        """Log each conflict of names once, and again only after it has changed or gone."""
        conflicts = {
            f"model {quote(entry.name)}: {entry.conflict}"
            for entry in _entries(models)
            if entry.conflict
        }
        for message in sorted(conflicts - self._reported_conflicts):
            log.warning("%s", message)
        self._reported_conflicts = conflicts

    def _swap(self, fresh: Models) -> None:
        """Take what was found, once what should replace a model that serves has loaded."""
        known = self._found()
        places = {entry.settings.location: entry for entry in _entries(fresh)}
        for old in _entries(known):
            new = fresh.get(old.name, {}).get(old.version) or places.get(old.settings.location)
            if new is None:
                continue
            if old.model is None:
                stays = old.settings == new.settings
            else:
                stays = not self._load_if_changed(old, new)
            if stays:
                old.folders = new.folders
                if new.settings.problem and fresh[new.name].get(new.version) is new:
                    del fresh[new.name][new.version]  # nobody knows what it would be called
                fresh.setdefault(old.name, {})[old.version] = old
        for name in known.keys() & fresh.keys():
            if any(entry.model is not None for entry in fresh[name].values()):
                self._load_new(fresh[name], known[name])
        with self._locked():
            self._models = fresh
        self._report_conflicts(fresh)

    def _load_if_changed(self, old: Entry, new: Entry) -> bool:
        """Load `new` if it differs from `old`; return True if it replaces it.

        Downloads and unpickles the artifact. A failure is recorded on `old`, which goes on serving,
        and is never raised: the scan goes on with the other models.
        """
        try:
            stamp = self._read_fingerprint(new)
            if (new.settings, stamp) == (old.settings, old.stamp):
                old.failure = None
                return False
            once_more = time.monotonic() >= old.failed_at + _AGAIN
            if (new.settings, stamp) == old.refused and not once_more:
                return False
            self.get(new)
        except ModelLoadError as error:
            old.failure, old.failed_at = _bare(error), time.monotonic()
            old.refused = new.settings, stamp
            return False
        except RepositoryError as error:
            old.failure = _bare(error)
            return False
        except MLServerlessError as error:
            log.warning("%s", error)
            return False
        return True

    def _read_fingerprint(self, entry: Entry) -> str:
        """Return the artifact's fingerprint, empty if its settings name no artifact.

        Raises RepositoryError or Unavailable.
        """
        try:
            with _map_repository_errors():
                return self._repository.stamp(entry.settings)
        except ModelLoadError:  # the load that follows fails with it, logs it and counts it
            return ""
        except MemoryError as error:
            raise Unavailable(_NO_MEMORY) from error

    def _load_new(self, fresh: Versions, known: Versions) -> None:
        """Load the versions that are new beside one that serves: it is the default until then.

        What the repository cannot give now is tried again at the next scan.
        """
        for version, entry in fresh.items():
            is_new = version not in known or isinstance(
                entry.failure, RepositoryError | Unavailable
            )
            if entry.model is not None or not is_new:
                continue
            try:
                self.get(entry)
            except ModelLoadError:
                continue  # it has been logged where it happened, and the index says so
            except MLServerlessError as error:
                log.warning("%s", error)
                # it exists but is not the default; a request for it loads it at once
                entry.failure, entry.failed_at = _bare(error), -math.inf

    # ── loading ─────────────────────────────────────────────────────────────────────────

    def kept(self, entry: Entry) -> Model | None:
        """The model of an entry, if it is in memory."""
        entry.used = next(self._uses)
        return entry.model

    def get(self, entry: Entry) -> Model:
        """The model of an entry, loaded by whoever comes first; the others wait for it.

        Raises ModelLoadError, NotFound, RepositoryError or Unavailable; only the first is
        remembered, for half a minute. Who has waited for a try that failed does not try again.
        """
        model = self.kept(entry)
        if model is not None:
            return model
        earlier = entry.outcome
        if not entry.lock.acquire(timeout=deadline.left(threading.TIMEOUT_MAX)):
            raise Unavailable(f"Model {quote(entry.name)} is still being loaded")
        try:
            if entry.model is not None:
                return entry.model
            failure = entry.failure
            if failure is None or time.monotonic() >= entry.failed_at + RETRY_AFTER:
                failure = entry.outcome if entry.outcome is not earlier else None
            if failure is not None:
                raise _bare(failure)
            return self._load(entry)
        finally:
            entry.lock.release()

    def _load(self, entry: Entry) -> Model:
        started, who = time.perf_counter(), {"model": entry.name, "version": entry.version}
        failure = None
        try:
            with paused():
                from mlserverless import loading  # noqa: PLC0415 - numpy, which INIT must not pay

                with _map_repository_errors():
                    artifact = self._fetch(entry)
                model = loading.load(artifact, entry.settings, self._settings)
        except BaseException as error:  # noqa: BLE001 - an estimator's own code runs here
            failure = self._failure(entry, error)
        if failure is not None:
            if not isinstance(failure, NotFound | Unavailable):
                log.error("%s", failure, extra={"fields": who | {"load_failures": 1}})
            if isinstance(failure, ModelLoadError):
                self._repository.forget(entry.settings)
            entry.outcome = _bare(failure)
            raise failure
        entry.failure, entry.outcome, entry.evicted = None, None, False
        entry.stamp, entry.size = artifact.stamp, artifact.size
        entry.model = model
        if entry.unloaded:  # meanwhile; whoever has asked before is answered
            entry.model = None
        took = {"model_load_ms": milliseconds(started), "bytes": entry.size}
        log.info("model %s loaded", quote(entry.name), extra={"fields": who | took})
        self._make_room(entry)
        return model

    @staticmethod
    def _failure(entry: Entry, error: BaseException) -> MLServerlessError:
        """What a client is told; the model's own fault is remembered."""
        if isinstance(error, MLServerlessError) and not isinstance(error, ModelLoadError):
            return error
        why: object = error
        if isinstance(error, MemoryError):
            why = "it needs more memory than there is"
        elif not isinstance(error, ModelLoadError):  # the message of any other may hold anything
            why = f"its artifact cannot be loaded ({type(error).__name__})"
            log.error("%s", why, extra={"fields": {"where": places(error.__traceback__)}})
        entry.failure = ModelLoadError(f"Model {quote(entry.name)} failed to load: {why}")
        entry.failed_at = time.monotonic()
        return _bare(entry.failure)

    def _fetch(self, entry: Entry) -> Artefact:
        """The artefact that lay beside the settings; these are read again when it is another."""
        if entry.failure is not None:  # the settings and listing were read before the failure
            entry.settings = self._reread(entry.settings)
        for _ in range(_REREADS):
            try:
                return self._repository.fetch(entry.settings)
            except Replaced:
                entry.settings = self._reread(entry.settings)
        return self._repository.fetch(entry.settings)

    def _reread(self, old: ModelSettings) -> ModelSettings:
        wanted = (old.name, old.version)
        for found in self._scan(wanted):
            if (found.name, found.version) == wanted:
                return found
        raise NotFound(f"Model {quote(old.name)} not found")

    def _make_room(self, newest: Entry) -> None:
        """Forget the models that were asked for the longest ago, until the others fit."""
        budget = self._settings.max_model_bytes
        if not budget:
            return
        with self._making_room:
            self._in_memory.add(newest)
            others = [
                each for each in self._in_memory if each is not newest and each.model is not None
            ]
            size = newest.size + sum(each.size for each in others)
            for each in sorted(others, key=lambda each: each.used):
                if size <= budget:
                    break
                size -= each.size
                each.evicted, each.model = True, None
                self._in_memory.discard(each)
                log.info("model %s left memory", quote(each.name))

    # ── the repository API ──────────────────────────────────────────────────────────────

    def index(self) -> list[ModelState]:
        """The state of every model, found or still loaded."""
        self._refresh()
        return [entry.state for entry in _entries(self._found())]

    def load(self, name: str) -> None:
        """Load every version of a model anew; the old ones serve until the new ones can."""
        found = _group(self._scan()).get(name)
        if found is None:
            raise NotFound(f"Model {quote(name)} not found")
        for entry in found.values():
            self.get(entry)
        others = self._found()
        with self._locked():
            self._models = {**(self._models or others), name: found}

    def unload(self, name: str) -> None:
        """Forget a model until it is loaded again; requests in flight finish."""
        self.find(name)
        for entry in self._found().get(name, {}).values():
            entry.unloaded = True
            entry.model = None

    def load_all(self) -> list[MLServerlessError]:
        """Load every model now, so that INIT or start-up pays for it; return what failed.

        Never raises. From now on readiness includes the models that are there, by name. If the
        repository cannot be read, the next readiness check tries again, and requests load what
        they need.
        """
        self._preloads = True
        try:
            models = self._found()
        except MLServerlessError as error:
            log.error("the models could not be preloaded: %s", error)  # noqa: TRY400 - as below
            return [_bare(error)]
        self._preloaded = {name: frozenset(versions) for name, versions in models.items()}
        return self._load_each(_entries(models))

    def _load_each(self, entries: Iterable[Entry]) -> list[MLServerlessError]:
        failures = []
        for entry in entries:
            try:
                self.get(entry)
            except MLServerlessError as error:
                if not isinstance(error, ModelLoadError):  # which was logged where it happened
                    log.error("%s", error)  # noqa: TRY400 - the message is enough
                failures.append(_bare(error))
        return failures

    def loaded(self) -> list[Model]:
        """Every model that is in memory; the repository is not read."""
        return [entry.model for entry in self._known_entries() if entry.model is not None]

    def reconnect(self) -> None:
        """Ask the repository over new connections from now on."""
        self._repository.reconnect()

    def rescan_at_next_request(self) -> None:
        """Let the next request scan the repository and retry what failed.

        For a process that was restored from a snapshot: its recorded times are of another process.
        """
        self._looked_at = -math.inf
        for entry in self._known_entries():
            entry.failed_at = -math.inf

    def unready(self) -> str | None:
        """Why this server is not ready, or None: the repository must be readable.

        Where models are preloaded, each must be loaded. What is missing is loaded now, since
        nothing else would load a model that no client requests; a failed load is retried as a
        request retries it, and what was unloaded stays so.
        """
        try:
            self._found()
            if self._preloads:
                self._load_missing()
        except MLServerlessError as error:
            return str(error)
        for entry in self._find_missing():
            return f"model {quote(entry.name)} is not loaded"
        return None

    def _load_missing(self) -> None:
        if self._preloaded is None:
            self.load_all()
            return
        missing = self._find_missing()
        if not missing:
            return
        if self._polls:
            self._poll()
        elif any(map(self._worth_another_look, missing)):
            self._refresh()
        self._load_each([entry for entry in self._find_missing() if not entry.unloaded])

    def _find_missing(self) -> list[Entry]:
        """Models that were preloaded and are not loaded now.

        A name that is gone from the repository is not missing. Neither is a version that came
        after start-up, as long as another one of its name is loaded.
        """
        missing = []
        for name, versions in (self._preloaded or {}).items():
            entries = self._found().get(name, {}).values()
            is_served = any(entry.is_loaded for entry in entries)
            missing += [
                entry
                for entry in entries
                if not entry.is_loaded
                and (entry.unloaded or entry.version in versions or not is_served)
            ]
        return missing


@contextmanager
def _map_repository_errors() -> Iterator[None]:
    """Turn an unexpected exception of a repository into RepositoryError or Unavailable.

    It is Unavailable if a resource of the process may become free again: a thread, a file.
    """
    try:
        yield
    except (MLServerlessError, MemoryError):
        raise
    except Exception as error:
        why = f"the model repository cannot be read ({type(error).__name__})"
        log.error("%s", why, extra={"fields": {"where": places(error.__traceback__)}})  # noqa: TRY400 - its message may hold anything
        is_passing = isinstance(error, RuntimeError | OSError)
        raise (Unavailable(why) if is_passing else RepositoryError(why)) from error


def _bare(error: MLServerlessError) -> MLServerlessError:
    """The same without what led to it: the frames hold a request, and an artefact's bytes."""
    return copy(error)


def _entries(models: Models) -> list[Entry]:
    return [entry for versions in models.values() for entry in versions.values()]


def _group(found: Iterable[ModelSettings]) -> Models:
    """Return one new entry for each name and version.

    Several folders may declare the same name and version. Folders whose settings can be served
    come first, then those whose path contains the model's name, then the order of `found`. The
    search for a single model finds the same folder, though it does not read the others.
    """
    same: dict[tuple[str, str | None], list[ModelSettings]] = {}
    for settings in found:
        same.setdefault((settings.name, settings.version), []).append(settings)
    models: Models = {}
    for (name, version), each in same.items():
        entry = Entry(min(each, key=_rank_folder))
        if len(each) > 1:
            entry.folders = tuple(found.folder for found in each)
        models.setdefault(name, {})[version] = entry
    return models


def _rank_folder(settings: ModelSettings) -> tuple[bool, bool]:
    is_named = not settings.folder or settings.name in settings.folder.split("/")
    return (settings.problem is not None, not is_named)


def _show_folder(folder: str) -> str:
    return quote(folder) if folder else "the root folder"
