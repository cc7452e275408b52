"""Models in memory: each found once, loaded once, with its state and the reason for it."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakSet

from mlserverless.collector import paused
from mlserverless.errors import (
    MLServerlessError,
    ModelLoadError,
    NotFound,
    Replaced,
    quote,
)
from mlserverless.journal import milliseconds
from mlserverless.repository import Artefact, Repository
from mlserverless.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from mlserverless.runtime import Model

log = logging.getLogger(__name__)

_REREADS: Final = 2  # of settings whose artefact is another one by now

RETRY_AFTER: Final = 30.0  # seconds until a load that failed for good is tried again


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
        self.swift = False  # whether its last small request was answered at once
        self.unloaded = False
        self.failure: ModelLoadError | None = None
        self.failed_at = 0.0

    @property
    def state(self) -> ModelState:
        """Its line of the index: ready unless something is known to stand against it."""
        settings = self.settings
        reason = settings.problem or (str(self.failure) if self.failure else "")
        if self.unloaded:
            reason = "unloaded"
        # new bytes that do not load leave a model that serves, and a reason beside it
        ready = self.model is not None or not reason
        return ModelState(settings.name, settings.version, ready, reason)


Versions = dict[str | None, Entry]


class Registry:
    """The models of one repository. Safe to share among threads."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self._repository = repository
        self._settings = settings
        self._lock = threading.Lock()
        self._models: dict[str, Versions] | None = None
        self._early: dict[str, Versions] = {}  # asked for before the others were looked for
        self._polls = settings.model_control_mode == "poll"
        self._polling = threading.Lock()
        self._next_poll = 0.0
        self._uses = itertools.count(1)
        self._in_memory: WeakSet[Entry] = WeakSet()  # what a newer one has replaced goes by itself
        self._making_room = threading.Lock()  # a load may happen under the other

    # ── finding ─────────────────────────────────────────────────────────────────────────

    def find(self, name: str, version: str | None = None) -> Entry:
        """The entry of a model, its default version when none is named; NotFound else."""
        if self._polls:
            self._poll()
        elif self._models is None:  # one without a version is the default, whatever else there is
            entry = self._found_early(name, version)
            if entry is not None:
                return entry
        versions = self._found().get(name, {})
        if version is not None:
            entry = versions.get(version)
            if entry is None or entry.unloaded:
                raise NotFound(f"Model {quote(name)} with version {quote(version)} not found")
            return entry
        present = [each for each, entry in versions.items() if not entry.unloaded]
        if not present:
            raise NotFound(f"Model {quote(name)} not found")
        return versions[max(present, key=_rank)]

    def at_hand(self, name: str, version: str | None) -> bool:
        """Whether `find` asks nobody: the model has been found, and it is no time to look again."""
        if self._polls:
            return self._models is not None and time.monotonic() < self._next_poll
        return self._models is not None or version in self._early.get(name, ())

    def versions(self, name: str) -> list[str]:
        """Every version that exists of a model, in ascending order."""
        present = [
            version
            for version, entry in self._found().get(name, {}).items()
            if not entry.unloaded and version is not None
        ]
        return sorted(present, key=_rank)

    def _found(self) -> dict[str, Versions]:
        # read without the lock: a reference is replaced whole, never changed while shared
        models = self._models
        if models is None:
            with self._lock:
                models = self._models
                if models is None:
                    models = self._models = self._merged(self._repository.models())
        return models

    def _found_early(self, name: str, version: str | None) -> Entry | None:
        """A cold start's way to one model: what the others are costs it nothing.

        None when it took all of them to find it; `_found` has them then.
        """
        with self._lock:
            entry = self._early.get(name, {}).get(version)
            if entry is None and self._models is None:
                found = self._repository.models((name, version))
                if [(name, version)] == [(each.name, each.version) for each in found]:
                    entry = self._early.setdefault(name, {})[version] = Entry(found[0])
                else:
                    self._models = self._merged(found)
            return entry

    def _merged(self, found: Iterable[ModelSettings]) -> dict[str, Versions]:
        models = _arranged(found)
        for name, versions in self._early.items():
            for version, entry in versions.items():
                new = models.get(name, {}).get(version)
                if new is not None and new.settings == entry.settings:
                    models[name][version] = entry
        return models

    # ── loading ─────────────────────────────────────────────────────────────────────────

    def kept(self, entry: Entry) -> Model | None:
        """The model of an entry, if it is in memory."""
        entry.used = next(self._uses)
        return entry.model

    def get(self, entry: Entry) -> Model:
        """The model of an entry, loaded by whoever comes first; the others wait for it.

        Raises ModelLoadError, NotFound, RepositoryError or Unavailable; only the first is
        remembered, for half a minute.
        """
        model = self.kept(entry)
        if model is not None:
            return model
        with entry.lock:
            model = entry.model
            if model is None:
                failure = entry.failure
                if failure is not None and time.monotonic() < entry.failed_at + RETRY_AFTER:
                    raise failure.with_traceback(None)
                model = self._load(entry)
            return model

    def _load(self, entry: Entry) -> Model:
        settings, started = entry.settings, time.perf_counter()
        who = {"model": settings.name, "version": settings.version}
        try:
            with paused():
                from mlserverless import runtime  # noqa: PLC0415 - numpy, which INIT must not pay

                artefact = self._fetch(entry)
                model = runtime.load(artefact, entry.settings, self._settings)
        except (ModelLoadError, MemoryError) as error:
            why = (
                error if isinstance(error, ModelLoadError) else "it needs more memory than there is"
            )
            failure = ModelLoadError(f"Model {quote(settings.name)} failed to load: {why}")
            entry.failure, entry.failed_at = failure, time.monotonic()
            log.error("%s", failure, extra={"fields": who | {"load_failures": 1}})  # noqa: TRY400 - the sentence says it all
            raise failure from error
        entry.failure, entry.evicted = None, False
        entry.stamp, entry.size = artefact.stamp, artefact.size
        entry.model = model
        took = {"model_load_ms": milliseconds(started), "bytes": entry.size}
        log.info("model %s loaded", quote(settings.name), extra={"fields": who | took})
        self._make_room(entry)
        return model

    def _fetch(self, entry: Entry) -> Artefact:
        """The artefact that lay beside the settings; these are read again when it is another."""
        for _ in range(_REREADS):
            try:
                return self._repository.fetch(entry.settings)
            except Replaced:
                entry.settings = self._reread(entry.settings)
        return self._repository.fetch(entry.settings)

    def _reread(self, old: ModelSettings) -> ModelSettings:
        wanted = (old.name, old.version)
        for found in self._repository.models(wanted):
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
                log.info("model %s left memory", quote(each.settings.name))

    # ── the repository API ──────────────────────────────────────────────────────────────

    def index(self) -> list[ModelState]:
        """The state of every model, found or still loaded."""
        return [
            entry.state for versions in self._refreshed().values() for entry in versions.values()
        ]

    def load(self, name: str) -> None:
        """Load every version of a model anew; the old ones serve until the new ones can."""
        found = _arranged(self._repository.models()).get(name)
        if found is None:
            raise NotFound(f"Model {quote(name)} not found")
        for entry in found.values():
            self.get(entry)
        others = self._found()
        with self._lock:
            self._models = {**(self._models or others), name: found}

    def unload(self, name: str) -> None:
        """Forget a model until it is loaded again; requests in flight finish."""
        self.find(name)
        for entry in self._found()[name].values():
            entry.unloaded = True
            entry.model = None

    def load_all(self) -> None:
        """Load every model now, so that INIT or start-up pays for it. Failures stay states."""
        for versions in self._found().values():
            for entry in versions.values():
                try:
                    self.get(entry)
                except ModelLoadError:
                    continue  # it has been logged where it happened
                except MLServerlessError as error:
                    log.error("%s", error)  # noqa: TRY400 - the sentence says it all

    def loaded(self) -> list[Model]:
        """Every model that is in memory."""
        entries = [entry for versions in self._found().values() for entry in versions.values()]
        return [entry.model for entry in entries if entry.model is not None]

    def reconnect(self) -> None:
        """Ask the repository over new connections from now on."""
        self._repository.reconnect()

    def unready(self) -> str | None:
        """Why this server is not ready, or None: the repository must be readable."""
        try:
            models = self._found()
        except MLServerlessError as error:
            return str(error)
        if self._settings.load_models_at_startup:
            for versions in models.values():
                for entry in versions.values():
                    if entry.unloaded or (entry.model is None and not entry.evicted):
                        return f"model {quote(entry.settings.name)} is not loaded"
        return None

    def _refreshed(self) -> dict[str, Versions]:
        """What lies in the repository now; entries that have a past keep it."""
        fresh = _arranged(self._repository.models())
        with self._lock:
            known = self._early if self._models is None else self._models
            for name, versions in fresh.items():
                for version, new in versions.items():
                    old = known.get(name, {}).get(version)
                    if old is not None and self._still_serves(old, new):
                        versions[version] = old
            self._models = fresh
        return fresh

    def _still_serves(self, old: Entry, new: Entry) -> bool:
        """Whether the old entry stays; where it polls, `new` has loaded when it does not."""
        same = old.settings == new.settings
        if not self._polls or old.model is None:
            return same
        try:
            if same and self._repository.stamp(new.settings) == old.stamp:
                old.failure = None
                return True
            self.get(new)
        except ModelLoadError as error:
            old.failure = error
            return True
        except MLServerlessError as error:
            log.warning("%s", error)
            return True
        return False

    def _poll(self) -> None:
        """Look again when it is time to; one request does, the others go on."""
        if time.monotonic() < self._next_poll or not self._polling.acquire(blocking=False):
            return
        try:
            self._next_poll = time.monotonic() + self._settings.poll_seconds
            if self._models is not None:
                self._refreshed()
        except MLServerlessError as error:
            log.warning("%s", error)
        finally:
            self._polling.release()


def _arranged(found: Iterable[ModelSettings]) -> dict[str, Versions]:
    models: dict[str, Versions] = {}
    for settings in found:
        models.setdefault(settings.name, {}).setdefault(settings.version, Entry(settings))
    return models


def _rank(version: str | None) -> tuple[int, int, str]:
    """No version is the default, else the highest integer, else the highest string."""
    if version is None:
        return (2, 0, "")
    if version.isascii() and version.isdigit() and len(version) < 20:
        return (1, int(version), "")
    return (0, 0, version)
