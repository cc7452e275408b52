"""Where models lie: a folder or S3, found, opened, and every failure in plain words."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from aws import BUCKET, S3Server
from conftest import IMPLEMENTATION, MakeModel
from mlserverless import repository as room
from mlserverless.errors import MLServerlessError, ModelLoadError, RepositoryError, Unavailable
from mlserverless.repository import FolderRepository, S3Repository, open_repository, split_s3
from mlserverless.settings import ModelSettings


def settings(**parameters: str) -> bytes:
    return json.dumps({"implementation": IMPLEMENTATION, "parameters": parameters}).encode()


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
        ("./gone.joblib", "its artefact, gone.joblib, is not in the repository"),
        (None, "model.joblib or model.pickle or model.pkl, is not in the repository"),
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
    with pytest.raises(ModelLoadError, match="its artefact cannot be read: Too many levels"):
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
    a, b = open_repository(f"s3://{root}").models()
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
    assert in_order == [model.name for model in S3Repository(f"s3://{BUCKET}/models").models()]
    assert sorted(folders) == sorted(in_order)


@pytest.mark.parametrize(
    ("location", "uri", "opened"),
    [
        (f"s3://{BUCKET}/m", "./own.joblib", b"own"),
        (f"s3://{BUCKET}/m", "../other/model.pkl", b"other"),
        (f"s3://{BUCKET}/m", None, b"well-known"),
        (f"s3://{BUCKET}", "m/own.joblib", b"own"),
        ("/a/folder", f"s3://{BUCKET}/m/own.joblib", b"own"),
        ("/a/folder", f"s3://{BUCKET}/m", b"well-known"),
        ("/a/folder", f"s3://{BUCKET}/m/", b"well-known"),
    ],
)
def test_an_artefact_is_fetched_from_wherever_its_uri_says(
    s3: S3Server, location: str, uri: str | None, opened: bytes
) -> None:
    s3.put("m/own.joblib", b"own")
    s3.put("m/model.joblib", b"well-known")
    s3.put("other/model.pkl", b"other")
    with S3Repository(f"s3://{BUCKET}").fetch(model(location, uri)).file as file:
        assert opened == file.read()


def test_a_missing_key_is_the_models_fault_and_a_missing_bucket_the_repositorys(
    s3: S3Server,
) -> None:
    s3.put("m/model-settings.json", settings())
    with pytest.raises(ModelLoadError, match=r"gone\.joblib, is not in the repository"):
        S3Repository(f"s3://{BUCKET}").fetch(model(f"s3://{BUCKET}/m", "gone.joblib"))
    with pytest.raises(RepositoryError, match="bucket nowhere-at-all does not exist"):
        S3Repository("s3://nowhere-at-all").models()


@pytest.mark.parametrize(
    ("status", "code", "error", "sentence"),
    [
        (403, "AccessDenied", RepositoryError, "access to bucket .* is denied"),
        (400, "ExpiredToken", RepositoryError, "access to bucket .* is denied"),
        (400, "AuthorizationHeaderMalformed", RepositoryError, "another region"),
        (418, "Teapot", RepositoryError, r"S3 refused bucket .* \(Teapot\)"),
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
        S3Repository(f"s3://{BUCKET}").models,
        lambda: S3Repository("s3://b").fetch(model(f"s3://{BUCKET}/m")),
    ):
        with pytest.raises(error, match=sentence):
            ask()


def test_a_passing_fault_is_asked_again_three_times_in_all(s3: S3Server) -> None:
    s3.fault = (500, "InternalError")
    with pytest.raises(Unavailable):
        S3Repository(f"s3://{BUCKET}").models()
    assert 3 == len(s3.asked)


def test_an_unreachable_s3_is_unavailable(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="out of reach"):
        S3Repository(f"s3://{BUCKET}").models()
    assert [] == s3.asked


def test_no_credentials_and_an_impossible_bucket_are_said_so(
    monkeypatch: pytest.MonkeyPatch, s3: S3Server, tmp_path: Path
) -> None:
    with pytest.raises(RepositoryError, match="is not the name of a bucket"):
        S3Repository("s3://not a bucket").models()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(RepositoryError, match="no credentials"):
        S3Repository(f"s3://{BUCKET}").models()
    assert [] == s3.asked


def test_an_s3_that_sends_a_byte_now_and_then_is_given_up_in_time(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes before any timeout of a socket; the gateway would give up first."""
    monkeypatch.setattr(room, "_QUESTION", 0.5)
    monkeypatch.setattr(room, "_DOWNLOAD", 0.5)
    settings = {"name": "m", "implementation": IMPLEMENTATION, "parameters": {"uri": "./m.joblib"}}
    s3.put("models/m/model-settings.json", json.dumps(settings).encode())
    s3.put("models/m/m.joblib", bytes(1000))
    repository = S3Repository(f"s3://{BUCKET}/models")
    (model,) = repository.models()
    s3.drip = 0.1
    for ask in (
        repository.models,
        lambda: repository.models(("m", "1")),
        lambda: repository.fetch(model),
    ):
        start = time.monotonic()
        with pytest.raises(Unavailable, match="takes too long"):
            ask()
        assert time.monotonic() - start < 2
    s3.drip = 0.0
    assert bytes(1000) == repository.fetch(model).file.read()


def test_a_body_that_is_cut_is_no_model_and_the_next_try_is(s3: S3Server) -> None:
    settings = {"name": "m", "implementation": IMPLEMENTATION, "parameters": {"uri": "./m.joblib"}}
    s3.put("models/m/model-settings.json", json.dumps(settings).encode())
    s3.put("models/m/m.joblib", bytes(1000))
    repository = S3Repository(f"s3://{BUCKET}/models")
    (model,) = repository.models()
    s3.cut = True
    with pytest.raises(Unavailable, match="out of reach"):
        repository.fetch(model)
    s3.cut = False
    assert bytes(1000) == repository.fetch(model).file.read()


def test_a_question_and_a_download_leave_a_request_time_before_the_gateway_gives_up() -> None:
    assert 25 >= room._QUESTION + room._DOWNLOAD  # noqa: SLF001 - the budget itself
