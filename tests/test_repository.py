"""Where models lie: a folder or S3, found, opened, and every failure in plain words."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from urllib3.response import BaseHTTPResponse, HTTPResponse

from aws import BUCKET, S3Server
from conftest import IMPLEMENTATION, ONLY_MEMORY, ROOT, MakeModel
from mlserverless import deadline
from mlserverless import repository as module
from mlserverless.cache import Cache
from mlserverless.errors import (
    MLServerlessError,
    ModelLoadError,
    Replaced,
    RepositoryError,
    Unavailable,
)
from mlserverless.repository import (
    FolderRepository,
    Repository,
    S3Repository,
    open_repository,
    split_s3,
)
from mlserverless.settings import ModelSettings


def settings(**parameters: str) -> bytes:
    return json.dumps({"implementation": IMPLEMENTATION, "parameters": parameters}).encode()


def opened(root: str) -> S3Repository:
    """The repository, with the download cache of the test's S3 if it has one."""
    folder = os.environ["MLSERVERLESS_CACHE_FOLDER"]
    return S3Repository(root, Cache(folder) if folder else None)


def model(location: object, uri: str | None = None) -> ModelSettings:
    return ModelSettings(name="m", location=str(location), uri=uri)


# ── a folder ────────────────────────────────────────────────────────────────────────────


def test_every_settings_file_below_the_root_is_a_model(make_model: MakeModel) -> None:
    make_model("b", b"")
    make_model("deep/er/c", b"")
    make_model(".hidden/d", b"")
    root = make_model("a", b"")
    assert ["a", "b", "deep/er/c"] == [each.name for each in FolderRepository(str(root)).models()]


def test_the_root_may_be_the_models_own_folder(digits: Path) -> None:
    (found,) = FolderRepository(str(digits)).models()
    assert "mnist-svm" == found.name


def test_a_missing_root_is_the_repositorys_fault(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="the model repository cannot be read"):
        FolderRepository(str(tmp_path / "nowhere")).models()


def test_a_settings_file_that_cannot_be_read_is_a_model_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model-settings.json").symlink_to("/proc/self/mem")
    (found,) = FolderRepository(str(tmp_path)).models()
    assert "model-settings.json cannot be read" in (found.problem or "")


def test_variables_describe_a_model_where_no_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [] == FolderRepository(str(tmp_path)).models()
    monkeypatch.setenv("MLSERVER_MODEL_NAME", "alone")
    monkeypatch.setenv("MLSERVER_MODEL_IMPLEMENTATION", IMPLEMENTATION)
    assert ["alone"] == [each.name for each in FolderRepository(str(tmp_path)).models()]


@pytest.mark.parametrize(
    ("uri", "opened"),
    [
        ("./model.pkl", b"pkl"),
        ("model.pkl", b"pkl"),
        (None, b"joblib"),
        (".", b"joblib"),
        ("sub", b"pickle"),
    ],
)
def test_a_uri_is_a_file_or_a_folder_beside_the_settings(
    tmp_path: Path, uri: str | None, opened: bytes
) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("model.joblib", "model.pkl", "sub/model.pickle"):
        (tmp_path / name).write_bytes(name.rsplit(".", 1)[1].encode())
    with FolderRepository(str(tmp_path)).fetch(model(tmp_path, uri)).file as file:
        assert opened == file.read()


def test_a_uri_may_be_absolute(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"absolute")
    with FolderRepository("/").fetch(model("/elsewhere", str(tmp_path / "m"))).file as file:
        assert b"absolute" == file.read()


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("./gone.joblib", "its artifact, gone.joblib, is not in the repository"),
        ("gone/", "its artifact, gone, is not in the repository"),
        ("/nowhere/gone/", "its artifact, gone, is not in the repository"),
        (
            None,
            "model.joblib or model.pickle or model.pkl or model.skops, is not in the repository",
        ),
        ("a\0b", "cannot be read|not in the repository"),
    ],
)
def test_a_missing_artefact_is_named_without_its_path(
    tmp_path: Path, uri: str | None, sentence: str
) -> None:
    with pytest.raises(ModelLoadError, match=sentence) as caught:
        FolderRepository(str(tmp_path)).fetch(model(tmp_path, uri))
    assert str(tmp_path) not in str(caught.value)


def test_an_artefact_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ModelLoadError, match="its artifact cannot be read: Too many levels"):
        FolderRepository(str(tmp_path)).fetch(model(tmp_path, "loop"))


def test_a_model_with_a_problem_is_not_fetched() -> None:
    broken = ModelSettings(name="m", location="/", problem="broken on purpose")
    with pytest.raises(ModelLoadError, match="broken on purpose"):
        FolderRepository("/").fetch(broken)


# ── S3 ──────────────────────────────────────────────────────────────────────────────────


def test_an_s3_uri_is_a_bucket_and_a_key() -> None:
    assert [("b", "some/key"), ("b", ""), ("b", "")] == [
        split_s3(uri) for uri in ("s3://b/some/key/", "s3://b/", "s3://b")
    ]


@pytest.mark.parametrize(
    ("prefix", "root"), [("team/models/", f"{BUCKET}/team/models"), ("", BUCKET)]
)
def test_every_settings_file_below_a_prefix_is_a_model(
    s3: S3Server, prefix: str, root: str
) -> None:
    s3.put(f"{prefix}a/model-settings.json", settings())
    s3.put(f"{prefix}deep/b/model-settings.json", b"{")
    s3.put(f"{prefix}a/model.joblib", b"")
    s3.put("elsewhere.json", b"")
    a, b = opened(f"s3://{root}").models()
    assert ("a", f"s3://{BUCKET}/{prefix}a", None) == (a.name, a.location, a.problem)
    assert ("b", True) == (b.name, "not valid JSON" in (b.problem or ""))


def test_s3_and_a_folder_list_the_same_models_in_the_same_order(
    s3: S3Server, tmp_path: Path
) -> None:
    folders = ["a", "a-1", "a/b", "a.b", "A"]  # as plain keys, "a-1/" comes before "a/"
    for folder in folders:
        settings = json.dumps({"name": folder, "implementation": IMPLEMENTATION}).encode()
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "model-settings.json").write_bytes(settings)
        s3.put(f"models/{folder}/model-settings.json", settings)
    in_order = [model.name for model in FolderRepository(str(tmp_path)).models()]
    assert in_order == [model.name for model in opened(f"s3://{BUCKET}/models").models()]
    assert sorted(folders) == sorted(in_order)


@pytest.mark.parametrize(
    ("location", "uri", "expected"),
    [
        (f"s3://{BUCKET}/m", "./own.joblib", b"own"),
        (f"s3://{BUCKET}/m", "../other/model.pkl", b"other"),
        (f"s3://{BUCKET}/m", None, b"well-known"),
        (f"s3://{BUCKET}", "m/own.joblib", b"own"),
        ("/a/folder", f"s3://{BUCKET}/m/own.joblib", b"own"),
        ("/a/folder", f"s3://{BUCKET}/m", b"well-known"),
        ("/a/folder", f"s3://{BUCKET}/m/", b"well-known"),
        (f"s3://{BUCKET}/m", f"s3://{BUCKET}/double//slash.joblib", b"double"),
    ],
)
def test_an_artefact_is_fetched_from_wherever_its_uri_says(
    s3: S3Server, location: str, uri: str | None, expected: bytes
) -> None:
    s3.put("m/own.joblib", b"own")
    s3.put("m/model.joblib", b"well-known")
    s3.put("other/model.pkl", b"other")
    s3.put("double//slash.joblib", b"double")
    with opened(f"s3://{BUCKET}").fetch(model(location, uri)).file as file:
        assert expected == file.read()


def test_a_prefix_may_hold_two_slashes(s3: S3Server) -> None:
    s3.put("double//m/model-settings.json", settings(uri="./m.joblib"))
    s3.put("double//m/m.joblib", b"double")
    repository = opened(f"s3://{BUCKET}/double")
    (found,) = repository.models()
    with repository.fetch(found).file as file:
        assert b"double" == file.read()


def test_a_bucket_is_no_artefact(s3: S3Server) -> None:
    s3.put("m", b"")
    with pytest.raises(ModelLoadError, match="its uri names a bucket and no object"):
        opened(f"s3://{BUCKET}").fetch(model("/a/folder", f"s3://{BUCKET}"))


def test_a_missing_key_is_the_models_fault_and_a_missing_bucket_the_repositorys(
    s3: S3Server,
) -> None:
    s3.put("m/model-settings.json", settings())
    with pytest.raises(ModelLoadError, match=r"gone\.joblib, is not in the repository"):
        opened(f"s3://{BUCKET}").fetch(model(f"s3://{BUCKET}/m", "gone.joblib"))
    with pytest.raises(RepositoryError, match="bucket nowhere-at-all does not exist"):
        opened("s3://nowhere-at-all").models()


@pytest.mark.parametrize(
    ("status", "code", "error", "sentence"),
    [
        (403, "AccessDenied", RepositoryError, "access to bucket .* is denied"),
        (400, "ExpiredToken", RepositoryError, "access to bucket .* is denied"),
        (400, "AuthorizationHeaderMalformed", RepositoryError, "another region"),
        (418, "Teapot", RepositoryError, r"S3 refused bucket .* \(Teapot\)"),
        (409, "OperationAborted", Unavailable, "cannot answer .* now"),
        (400, "KMS.ThrottlingException", Unavailable, "cannot answer .* now"),
        (503, "SlowDown", Unavailable, "cannot answer .* now"),
        (500, "InternalError", Unavailable, "cannot answer .* now"),
        (429, "TooMany", Unavailable, "cannot answer .* now"),
    ],
)
def test_what_s3_says_decides_whether_trying_again_can_help(
    s3: S3Server, status: int, code: str, error: type[MLServerlessError], sentence: str
) -> None:
    s3.fault = (status, code)
    for ask in (
        opened(f"s3://{BUCKET}").models,
        lambda: opened("s3://b").fetch(model(f"s3://{BUCKET}/m")),
    ):
        with pytest.raises(error, match=sentence):
            ask()


def test_a_passing_fault_is_asked_again_three_times_in_all(s3: S3Server) -> None:
    s3.fault = (500, "InternalError")
    with pytest.raises(Unavailable):
        opened(f"s3://{BUCKET}").models()
    assert 3 == len(s3.asked)


def test_an_unreachable_s3_is_unavailable(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="out of reach"):
        opened(f"s3://{BUCKET}").models()
    assert [] == s3.asked


@pytest.mark.parametrize(
    ("status", "page"),
    [(200, b"<html>Please log in</html>"), (200, b"{}"), (200, b""), (204, b""), (302, b"")],
)
def test_what_is_not_s3_is_no_empty_bucket(s3: S3Server, status: int, page: bytes) -> None:
    """A proxy's page, a portal's: models that were there would be gone."""
    s3.page = status, page
    with pytest.raises(Unavailable, match="S3"):
        opened(f"s3://{BUCKET}").models()


def test_an_s3_that_gives_no_stamps_is_not_s3(s3: S3Server) -> None:
    s3.put("m/m.joblib", b"-")
    s3.without = "etag"
    for ask in (opened(f"s3://{BUCKET}").fetch, opened(f"s3://{BUCKET}").stamp):
        with pytest.raises(Unavailable, match="is not S3"):
            ask(model(f"s3://{BUCKET}/m", "m.joblib"))


def test_what_the_configuration_says_wrong_is_said(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "no address at all")
    with pytest.raises(RepositoryError, match=r"with this configuration \(ValueError\)"):
        opened(f"s3://{BUCKET}").models()
    assert [] == s3.asked


def test_credentials_are_read_anew_once_they_were_refused(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client keeps those that it was made with, however often they expire."""
    s3.put("m/model-settings.json", settings())
    repository = opened(f"s3://{BUCKET}")
    assert 1 == len(repository.models())
    s3.fault = (403, "ExpiredToken")
    with pytest.raises(RepositoryError):
        repository.models()
    s3.well()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")
    assert 1 == len(repository.models())
    asked_with = repository.s3.client._request_signer._credentials  # noqa: SLF001 - the fact itself
    assert "renewed" == asked_with.access_key


def test_no_credentials_and_an_impossible_bucket_are_said_so(
    monkeypatch: pytest.MonkeyPatch, s3: S3Server, tmp_path: Path
) -> None:
    with pytest.raises(RepositoryError, match="is not the name of a bucket"):
        opened("s3://not a bucket").models()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(RepositoryError, match="no credentials"):
        opened(f"s3://{BUCKET}").models()
    assert [] == s3.asked


MODEL = {"name": "m", "implementation": IMPLEMENTATION, "parameters": {"uri": "./m.joblib"}}
BYTES = bytes(range(256)) * 8
Stored = tuple[S3Repository, ModelSettings]


@pytest.fixture
def stored(s3: S3Server) -> Stored:
    """A repository with one model, which has been listed."""
    s3.put("models/m/model-settings.json", json.dumps(MODEL).encode())
    s3.put("models/m/m.joblib", BYTES)
    repository = opened(f"s3://{BUCKET}/models")
    (model,) = repository.models()
    return repository, model


def fetched(repository: Repository, model: ModelSettings) -> bytes:
    """The artefact's bytes."""
    with repository.fetch(model).file as file:
        return file.read()


def test_an_s3_that_sends_a_byte_now_and_then_is_given_up_in_time(
    s3: S3Server, stored: Stored
) -> None:
    """Each byte comes before any timeout of a socket; the gateway would give up first."""
    repository, model = stored
    s3.drip = 0.1
    for ask in (
        repository.models,
        lambda: repository.models(("m", "1")),
        lambda: repository.fetch(model),
    ):
        start = time.monotonic()
        with deadline.until(start + 0.5), pytest.raises(Unavailable, match="takes too long"):
            ask()
        assert time.monotonic() - start < 2
    s3.drip = 0.0
    assert BYTES == fetched(repository, model)


@pytest.mark.parametrize("urllib3", ["2.3", "older"])
def test_no_thread_reads_on_after_a_call_to_s3_was_given_up(
    s3: S3Server, stored: Stored, monkeypatch: pytest.MonkeyPatch, urllib3: str
) -> None:
    """A server that sends slowly would hold a connection and a thread as long as it wants to."""
    repository, model = stored
    for number in range(3):
        s3.put(f"models/{number}/model-settings.json", b"{}")
    if urllib3 == "older":
        for each in (HTTPResponse, BaseHTTPResponse):
            monkeypatch.delattr(each, "shutdown")
    before = set(threading.enumerate())
    s3.drip = 0.1
    calls: list[tuple[Callable[[], Any], str]] = [
        (repository.models, ""),  # the listing
        (opened(f"s3://{BUCKET}/models").models, "model-settings.json"),  # several threads
        (lambda: repository.fetch(model), "m.joblib"),
    ]
    for call, s3.end in calls:
        with deadline.until(time.monotonic() + 0.4), pytest.raises(Unavailable, match="too long"):
            call()
    until = time.monotonic() + 5
    while any(
        thread.name.startswith(("s3", "ThreadPool"))
        for thread in set(threading.enumerate()) - before
    ):
        assert time.monotonic() < until
        time.sleep(0.01)


# ── downloads that are continued ────────────────────────────────────────────────────────

LARGE = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def large(s3: S3Server, stored: Stored) -> Stored:
    """The same with an artifact of 1 MiB."""
    s3.put("models/m/m.joblib", LARGE)
    repository, _ = stored
    (model,) = repository.models()
    s3.sent = 0
    return repository, model


def fetched_in_time(
    repository: Repository, model: ModelSettings, seconds: float = 0.4, most: int = 20
) -> tuple[bytes, list[str]]:
    """The artifact's bytes, by as many requests as it takes, and the messages of the others."""
    messages: list[str] = []
    for _ in range(most):
        start = time.monotonic()
        try:
            with deadline.until(start + seconds):
                return fetched(repository, model), messages
        except Unavailable as error:
            messages.append(str(error))
            assert time.monotonic() - start < seconds + 1
    raise AssertionError(messages)


def test_a_slow_download_is_continued_by_the_next_request(s3: S3Server, large: Stored) -> None:
    s3.rate, s3.end = 1_500_000, "m.joblib"
    raw, messages = fetched_in_time(*large)
    assert LARGE == raw
    assert messages
    arrived = [int(each.partition(": ")[2].partition(" of 1048576 bytes")[0]) for each in messages]
    assert sorted(set(arrived)) == arrived, "each request gets further"
    assert [f"bytes={each}-" for each in arrived] == s3.ranges
    assert s3.sent < 2 * len(LARGE)


@pytest.mark.parametrize("fault", [{"cut": True}, {"longer": -500_000}, {"no_range": True}])
def test_a_download_that_broke_is_continued_or_started_again(
    s3: S3Server, large: Stored, fault: dict[str, Any]
) -> None:
    repository, model = large
    s3.cut = True
    with pytest.raises(Unavailable, match="524288 of 1048576 bytes of the artifact have arrived"):
        repository.fetch(model)
    s3.cut = False
    for name, value in fault.items():
        setattr(s3, name, value)
    with suppress(Unavailable):
        assert LARGE == fetched(repository, model)
    s3.well()
    assert LARGE == fetched(repository, model)
    assert "bytes=524288-" == s3.ranges[0]


def test_a_continued_download_is_of_one_object(s3: S3Server, large: Stored) -> None:
    repository, model = large
    s3.cut = True
    with pytest.raises(Unavailable, match="524288 of 1048576"):
        repository.fetch(model)
    s3.cut = False
    s3.put("models/m/m.joblib", LARGE[::-1])
    with pytest.raises(Replaced):
        repository.fetch(model)
    (model,) = repository.models()
    assert LARGE[::-1] == fetched(repository, model)


def test_an_artifact_that_was_not_listed_is_continued_too(s3: S3Server, tmp_path: Path) -> None:
    """One of another bucket, or of a model in a folder."""
    s3.put("elsewhere.joblib", LARGE, bucket="another")
    folder = os.environ["MLSERVERLESS_CACHE_FOLDER"]
    repository = open_repository(str(tmp_path), folder)
    s3.rate, s3.end = 1_500_000, "elsewhere.joblib"
    raw, messages = fetched_in_time(repository, model(tmp_path, "s3://another/elsewhere.joblib"))
    assert LARGE == raw
    assert messages


def test_where_no_request_waits_a_download_takes_as_long_as_it_makes_progress(
    s3: S3Server, large: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At INIT, before a snapshot and by a poll."""
    repository, model = large
    monkeypatch.setattr(module, "_DOWNLOAD_STALL_SECONDS", 0.3)
    monkeypatch.setattr(module, "_MIN_PROGRESS_BYTES", 100_000)
    s3.end, s3.drip = "m.joblib", 0.05
    start = time.monotonic()
    with pytest.raises(Unavailable, match="takes too long"):
        repository.fetch(model)
    assert time.monotonic() - start < 2
    s3.drip, s3.rate = 0.0, 1_500_000
    assert LARGE == fetched(repository, model)


@pytest.mark.parametrize("raw", [b"", LARGE], ids=["empty", "large"])
@pytest.mark.parametrize("no_range", [False, True])
def test_an_artifact_that_was_not_listed_is_fetched_whatever_its_size(
    s3: S3Server, tmp_path: Path, raw: bytes, no_range: bool
) -> None:
    s3.put("elsewhere.joblib", raw, bucket="another")
    s3.no_range = no_range
    repository = open_repository(str(tmp_path), os.environ["MLSERVERLESS_CACHE_FOLDER"])
    assert raw == fetched(repository, model(tmp_path, "s3://another/elsewhere.joblib"))


def test_more_bytes_than_were_listed_are_not_taken(large: Stored) -> None:
    repository, listed = large
    (uri,) = [each for each in listed.listing if each.endswith("m.joblib")]
    shorter = module.Stored(listed.listing[uri].etag, 1000)
    with pytest.raises(Unavailable, match="sent another length"):
        repository.fetch(replace(listed, listing={**listed.listing, uri: shorter}))
    assert LARGE == fetched(repository, listed)


@ONLY_MEMORY
def test_a_long_listing_takes_as_long_as_it_makes_progress(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        s3.put(f"{number}.joblib", b"")
    s3.put("m/model-settings.json", settings())
    monkeypatch.setattr(module, "_METADATA_STALL_SECONDS", 1.0)
    monkeypatch.setattr(module, "_MIN_PROGRESS_BYTES", 100)
    repository = opened(f"s3://{BUCKET}")
    assert repository.s3.client
    s3.page_keys, s3.hang = 2, 0.15
    start = time.monotonic()
    assert 1 == len(repository.models())
    assert time.monotonic() - start > 1.0


def test_memory_retains_a_few_interrupted_downloads(s3: S3Server, tmp_path: Path) -> None:
    uris = [f"s3://{BUCKET}/{number}.joblib" for number in range(6)]
    for uri in uris:
        s3.put(uri.rpartition("/")[2], LARGE)
    repository = open_repository(str(tmp_path))
    s3.cut = True
    for uri in uris:
        with pytest.raises(Unavailable, match="of 1048576"):
            repository.fetch(model(tmp_path, uri))
    s3.ranges.clear()
    s3.cut = False
    for uri in uris:
        assert LARGE == fetched(repository, model(tmp_path, uri))
    assert 4 == s3.ranges.count("bytes=524288-")


def test_a_call_that_was_given_up_writes_nothing_more(s3: S3Server, large: Stored) -> None:
    """Its thread may still run when the next request continues the same file."""
    repository, model = large
    s3.cut = True
    with pytest.raises(Unavailable, match="524288 of 1048576"):
        repository.fetch(model)
    s3.cut, s3.hang = False, 0.5
    with deadline.until(time.monotonic() + 0.1), pytest.raises(Unavailable, match="524288 of"):
        repository.fetch(model)
    s3.hang, s3.rate, s3.end = 0.0, 800_000, "m.joblib"
    assert LARGE == fetched(repository, model)


def test_a_call_that_is_over_does_not_write() -> None:
    """Also if its connection could not be shut down, and bytes arrive on it."""
    call, file = module._Call(), io.BytesIO()  # noqa: SLF001 - no server can time this
    call.write(file, b"in time")
    call.end()
    with pytest.raises(Unavailable, match="too long"):
        call.write(file, b"late")
    with pytest.raises(Unavailable, match="too long"):
        call.rewind(file)
    assert (b"in time", 7) == (file.getvalue(), file.tell())


# ── keys, threads and variables ─────────────────────────────────────────────────────────


def test_a_key_that_was_not_listed_is_not_requested(s3: S3Server, stored: Stored) -> None:
    """S3 returns 403 for it where the role may not list, and access is not what is missing."""
    repository, listed = stored
    s3.fault, s3.end = (403, "AccessDenied"), ".joblib"
    s3.asked.clear()
    for uri in ("./typo.joblib", "typo/", f"s3://{BUCKET}/models/other/m.joblib", None, "../x/.."):
        missing = replace(listed, uri=uri)
        with pytest.raises(ModelLoadError, match="is not in the repository"):
            repository.fetch(missing)
        assert "" == repository.stamp(missing)
    assert [] == s3.asked
    with pytest.raises(RepositoryError, match="is denied"):
        repository.fetch(replace(listed, uri=f"s3://{BUCKET}/elsewhere/m.joblib"))


@pytest.mark.parametrize("uri", [None, "./model.joblib", f"s3://{BUCKET}/models/model.joblib"])
def test_variables_describe_a_model_in_s3_where_no_file_does(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, uri: str | None
) -> None:
    s3.put("models/model.joblib", BYTES)
    repository = opened(f"s3://{BUCKET}/models/")
    assert [] == repository.models()
    monkeypatch.setenv("MLSERVER_MODEL_NAME", "alone")
    monkeypatch.setenv("MLSERVER_MODEL_IMPLEMENTATION", IMPLEMENTATION)
    if uri is not None:
        monkeypatch.setenv("MLSERVER_MODEL_URI", uri)
    (found,) = repository.models(("alone", None))
    assert ("alone", None) == (found.name, found.problem)
    s3.asked.clear()
    assert BYTES == fetched(repository, found)
    assert [f"GET /{BUCKET}/models/model.joblib"] == s3.asked
    etag = repository.stamp(found)
    s3.put("models/model.joblib", BYTES[::-1])
    (found,) = repository.models()
    assert etag != repository.stamp(found)
    assert BYTES[::-1] == fetched(repository, found)
    s3.put("models/m/model-settings.json", json.dumps(MODEL).encode())
    assert ["m"] == [each.name for each in repository.models()]


@ONLY_MEMORY
@pytest.mark.parametrize(
    ("threads", "expected"),
    [(0, "Unavailable: S3 cannot be called: no thread can be started"), (1, "8"), (3, "8")],
)
def test_where_few_threads_can_be_started_settings_are_read_with_these(
    s3: S3Server, threads: int, expected: str
) -> None:
    """RLIMIT_DATA counts the stack of each thread."""
    for number in range(8):
        s3.put(f"{number}/model-settings.json", settings())
    code = (
        "import resource, sys, threading\n"
        "from mlserverless.repository import open_repository\n"
        "repository = open_repository(sys.argv[1])\n"
        "repository.s3.client\n"
        "threading.stack_size(256 << 20)\n"
        "pages = int(open('/proc/self/statm').read().split()[5])\n"
        "limit = pages * resource.getpagesize() + (int(sys.argv[2]) * 256 + 128 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))\n"
        "try:\n"
        "    print(len(repository.models()))\n"
        "except Exception as error:\n"
        "    print(f'{type(error).__name__}: {error}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"s3://{BUCKET}", str(threads)],
        env={"PYTHONPATH": str(ROOT / "handler"), **s3.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(expected), done.stdout + done.stderr


@ONLY_MEMORY
@pytest.mark.parametrize(("memory", "most"), [("512", 4), ("1769", 16), ("", 16)])
def test_a_small_function_reads_settings_with_few_threads(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, memory: str, most: int
) -> None:
    for number in range(20):
        s3.put(f"{number}/model-settings.json", settings())
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", memory)
    counts: list[int] = []

    def count(asked: str) -> None:
        if asked.endswith(".json"):
            counts.append(sum(each.name.startswith("ThreadPool") for each in threading.enumerate()))
            time.sleep(0.01)

    s3.before = count
    assert 20 == len(opened(f"s3://{BUCKET}").models())
    assert 1 < max(counts) <= most


def test_a_body_that_is_cut_is_no_model_and_the_next_try_is(s3: S3Server, stored: Stored) -> None:
    repository, model = stored
    s3.cut = True
    with pytest.raises(Unavailable, match="out of reach"):
        repository.fetch(model)
    s3.cut = False
    assert BYTES == fetched(repository, model)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"reset": True}, "out of reach"),
        ({"hang": 1.0}, "takes too long"),
        ({"longer": 500}, "out of reach"),
        ({"longer": -500}, "another length|out of reach"),
    ],
    ids=["reset", "hang", "longer", "shorter"],
)
def test_a_connection_that_fails_passes(
    s3: S3Server,
    stored: Stored,
    fault: dict[str, Any],
    sentence: str,
) -> None:
    repository, model = stored
    seconds = 0.5 if sentence == "takes too long" else 10
    for name, value in fault.items():
        setattr(s3, name, value)
    with (
        deadline.until(time.monotonic() + seconds),
        pytest.raises(Unavailable, match=sentence),
    ):
        repository.fetch(model)
    s3.well()
    assert BYTES == fetched(repository, model)


def test_an_artefact_that_was_replaced_since_it_was_listed_is_not_taken_for_it(
    s3: S3Server, stored: Stored
) -> None:
    repository, model = stored
    s3.put("models/m/m.joblib", b"another")
    with pytest.raises(Replaced, match="is being replaced"):
        repository.fetch(model)
    (model,) = repository.models()
    assert b"another" == fetched(repository, model)
    s3.client.delete_object(Bucket=BUCKET, Key="models/m/m.joblib")
    (listed,) = repository.models()
    with pytest.raises(ModelLoadError, match=r"m\.joblib, is not in the repository"):
        repository.fetch(listed)


def test_an_artefact_that_went_away_since_it_was_listed_is_looked_for_again(
    s3: S3Server, stored: Stored
) -> None:
    repository, model = stored
    s3.client.delete_object(Bucket=BUCKET, Key="models/m/m.joblib")
    with pytest.raises(Replaced):
        repository.fetch(model)


def test_settings_that_are_replaced_while_they_are_read_are_listed_again(s3: S3Server) -> None:
    s3.put("models/m/model-settings.json", json.dumps(MODEL).encode())
    key = f"GET /{BUCKET}/models/m/model-settings.json"

    def once(asked: str) -> None:
        if asked == key:
            s3.well()
            s3.put(
                "models/m/model-settings.json", json.dumps({**MODEL, "platform": "new"}).encode()
            )

    s3.before = once
    (model,) = opened(f"s3://{BUCKET}/models").models()
    assert "new" == model.platform
    assert 2 == s3.asked.count(key)


def test_settings_that_never_stay_are_unavailable(s3: S3Server) -> None:
    s3.put("models/m/model-settings.json", b"{}")
    count = itertools.count(1)

    def always(asked: str) -> None:
        if asked == f"GET /{BUCKET}/models/m/model-settings.json":
            s3.put("models/m/model-settings.json", b"{}" + b" " * next(count))

    s3.before = always
    with pytest.raises(Unavailable, match="is being replaced"):
        opened(f"s3://{BUCKET}/models").models()


@ONLY_MEMORY
@pytest.mark.parametrize("folder", ["", "nowhere"], ids=["none", "unusable"])
def test_where_there_is_no_disk_memory_will_do(
    s3: S3Server, stored: Stored, tmp_path: Path, folder: str
) -> None:
    """Nothing at all is written then."""
    code = (
        "import sys\n"
        "def refuse(event, arguments):\n"
        "    mode = arguments[1] if event == 'open' else None\n"
        "    written = isinstance(mode, str) and set(mode) & set('wax+')\n"
        "    if written or event in ('os.rename', 'tempfile.mkstemp'):\n"
        "        raise SystemExit(f'{event} {arguments}')\n"
        "from mlserverless.repository import open_repository\n"
        "repository = open_repository(*sys.argv[1:])\n"
        "sys.addaudithook(refuse)\n"
        "(model,) = repository.models()\n"
        "print(len(repository.fetch(model).file.read()))\n"
    )
    assert stored
    cache_folder = str(tmp_path / folder) if folder else ""
    done = subprocess.run(
        [sys.executable, "-c", code, f"s3://{BUCKET}/models", cache_folder],
        env={
            "PYTHONPATH": str(ROOT / "handler"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/nowhere",
            **s3.environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{len(BYTES)}\n" == done.stdout, done.stderr
