"""Make writes and deletes inside the folder that it is given, whatever paths and values contain.

Each test works in a copy of the checkout, with files beside it that must survive.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from conftest import ROOT
from emulator import BUILT, python_of_lambda

COPIED = ("handler", "layers", "local", "models", "requirements")
COPIED_FILES = ("Makefile", "pyproject.toml", "samconfig.toml", "template.yaml")
# each of them ends a word, a string, a variable, a path or a line somewhere
UNSAFE = ["'", '"', "`", "$", "\\", ":", ";", "%", "*", "?", "[", "]", "|", "<", ">", "#"]
UNSAFE += ["\n", "\t", "$(touch sentinel)", "`touch sentinel`", "$HOME", "';touch sentinel;'"]
TARGETS = {
    "handler": "build-Function",
    "layers/sklearn": "build-SklearnLayer",
    "layers/models": "build-ModelsLayer",
}

needs_python = pytest.mark.skipif(
    python_of_lambda() is None, reason="no CPython 3.13 here to build with"
)


@pytest.fixture(scope="module", autouse=True)
def environments() -> None:
    """The virtual environments that `make build` uses, for copies to link to."""
    subprocess.run(["make", ".venv-audit/ready"], cwd=ROOT, check=True, capture_output=True)


def copy_checkout(checkout: Path) -> Path:
    """Copy what `make build` needs; the virtual environments are real folders that link here."""
    checkout.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in COPIED:
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    for name in COPIED_FILES:
        shutil.copy(ROOT / name, checkout / name)
    for name in (".venv", ".venv-audit"):
        (checkout / name).mkdir()
        for part in ("bin", "lib", "pyvenv.cfg"):
            (checkout / name / part).symlink_to(ROOT / name / part)
        (checkout / name / "created-by-make").touch()
        (checkout / name / "ready").touch()
    return checkout


def make(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ["PATH"]])
    return subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a make that must fail prints, without make's own lines."""
    assert 0 != done.returncode, done.stdout
    lines = [
        line
        for line in done.stderr.splitlines()
        if not re.match(r"make(\[\d\])?: (\*\*\* \[|Entering|Leaving|\[)", line)
    ]
    assert 1 == len(lines), done.stderr
    return lines[0]


def snapshot(folder: Path) -> Mapping[str, str]:
    """Every path below `folder` with the digest of its content; links are not followed."""
    found = {}
    for path, folders, files in os.walk(folder):
        for name in folders + files:
            each = Path(path) / name
            if each.is_symlink():
                found[str(each)] = f"link to {os.readlink(each)}"
            elif each.is_file():
                found[str(each)] = hashlib.sha256(each.read_bytes()).hexdigest()
            else:
                found[str(each)] = "folder"
    return found


def put_sentinels(*folders: Path) -> None:
    """Put files where a path that is split or expanded would lead to."""
    for folder in folders:
        (folder / "tests").mkdir(parents=True, exist_ok=True)
        for name in ("precious.py", "RECORD", "tests/precious.h", "precious.joblib"):
            (folder / name).write_text("precious")


@pytest.mark.parametrize("unsafe", UNSAFE)
def test_a_checkout_path_that_make_would_misread_is_refused_before_anything_runs(
    tmp_path: Path, unsafe: str
) -> None:
    checkout = copy_checkout(tmp_path / f"app{unsafe} copy")
    put_sentinels(tmp_path / "app", tmp_path / "copy", checkout / "out")
    before = snapshot(tmp_path)
    commands = [[], ["clean"], ["build"], ["-i", "clean"], ["models"]]
    commands += [
        [*ignore, "-C", folder, target, f"ARTIFACTS_DIR={tmp_path}/new"]
        for folder, target in TARGETS.items()
        for ignore in ([], ["-i"])
    ]
    for command in commands:
        output = refusal(make(checkout, *command))
        assert "the path of this checkout contains " in output
        assert "move the checkout to a path without" in output
    assert before == snapshot(tmp_path)


def test_sam_build_alone_stops_at_such_a_path_too(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "app$x copy")
    put_sentinels(tmp_path / "app", tmp_path / "copy", tmp_path / "app copy")
    before = snapshot(tmp_path)
    done = subprocess.run(
        [ROOT / ".venv" / "bin" / "sam", "build", "ModelsLayer"],
        cwd=checkout,
        env={**os.environ, "SAM_CLI_TELEMETRY": "0", "AWS_DEFAULT_REGION": "eu-west-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 != done.returncode
    assert "the path of this checkout contains $" in done.stderr
    after = {path: what for path, what in snapshot(tmp_path).items() if ".aws-sam" not in path}
    assert before == after


@needs_python
def test_a_build_in_a_folder_with_spaces_is_the_same_and_one_over_the_limit_fails(
    tmp_path: Path,
) -> None:
    """One build for both: it takes half a minute."""
    subprocess.run(["make", "build"], cwd=ROOT, check=True, capture_output=True)
    checkout = copy_checkout(tmp_path / "app (copy) é & so = on")
    put_sentinels(tmp_path / "app", tmp_path / "(copy)", tmp_path / "on")
    big = checkout / "models" / "big"
    big.mkdir()
    with (big / "big.joblib").open("wb") as file:
        file.truncate(60_000_000)
    before = snapshot(tmp_path)
    done = make(checkout, "build", AWS_DEFAULT_REGION="eu-west-1", SAM_CLI_TELEMETRY="0")
    assert 0 != done.returncode
    (output,) = [line for line in done.stderr.splitlines() if line.startswith("build: ")]
    assert re.search(
        r"has 28\d,\d{3},\d{3} bytes unzipped and Lambda's limit is 262,144,000", output
    )
    assert "models/big (60,000,000)" in output
    assert "S3 (parameter ModelBucket)" in output
    after = snapshot(tmp_path)
    made = (str(checkout / ".aws-sam"), str(checkout / "build"))
    assert before == {path: what for path, what in after.items() if not path.startswith(made)}
    built = checkout / ".aws-sam" / "build"
    shutil.rmtree(built / "ModelsLayer" / "models" / "big")
    for part in ("Function", "SklearnLayer", "ModelsLayer"):
        relative = [
            {path.removeprefix(str(folder)): what for path, what in snapshot(folder).items()}
            for folder in (built / part, BUILT / part)
        ]
        assert relative[0] == relative[1]


def folders_to_refuse(tmp_path: Path, checkout: Path) -> Iterator[tuple[str, str]]:
    """Values of ARTIFACTS_DIR, with the reason for their refusal."""
    (tmp_path / "link").symlink_to(tmp_path / "app")
    (tmp_path / "file").touch()
    yield "", "is not an absolute path"
    yield ".", "is not an absolute path"
    yield "out", "is not an absolute path"
    yield "-rf", "is not an absolute path"
    for folder in ("/", str(tmp_path), str(checkout), f"{tmp_path}/app", f"{tmp_path}/link"):
        yield folder, "is not empty, and a build deletes files"
    yield f"{tmp_path}/new/../app", "is not empty, and a build deletes files"
    for source in ("handler", "layers/sklearn", "models/new"):
        yield f"{checkout}/{source}", "is a folder of the sources"
    yield f"{tmp_path}/file", "cannot be used: "


@needs_python
@pytest.mark.parametrize("folder", TARGETS)
def test_a_part_is_built_in_an_empty_folder_only(tmp_path: Path, folder: str) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    put_sentinels(tmp_path / "app", checkout / folder)
    target = ["-C", folder, TARGETS[folder]]
    refused = list(folders_to_refuse(tmp_path, checkout))
    before = snapshot(tmp_path)
    for value, reason in refused:
        for arguments, environment in (
            ([f"ARTIFACTS_DIR={value}"], {}),
            (["-i"], {"ARTIFACTS_DIR": value}),
        ):
            done = make(checkout, *target, *arguments, **environment)
            ignored = "-i" in arguments  # make's status is 0 then
            done.returncode = done.returncode or ignored
            output = refusal(done)
            assert output.startswith("build: ARTIFACTS_DIR "), output
            assert reason in output, (value, output)
    assert "is not an absolute path" in refusal(make(checkout, *target))
    assert before == snapshot(tmp_path)


@needs_python
@pytest.mark.parametrize("name", ["a b", "a$b", "a'b", 'a"b', "a#b", "a;b", "a\nb", "$(x)", "é*"])
def test_the_folder_of_artifacts_may_have_any_name(tmp_path: Path, name: str) -> None:
    put_sentinels(tmp_path / "a", tmp_path / "b")
    before = snapshot(tmp_path)
    folder = tmp_path / name / "out"
    for environment, arguments in (
        ({"ARTIFACTS_DIR": str(folder)}, []),
        ({}, [f"ARTIFACTS_DIR={folder}"]),
    ):
        done = make(ROOT / "layers" / "models", "build-ModelsLayer", *arguments, **environment)
        assert 0 == done.returncode, done.stderr
        assert (folder / "models" / "mnist-svm" / "mnist-svm.joblib").is_file()
        shutil.rmtree(tmp_path / name)
    assert before == snapshot(tmp_path)


@needs_python
def test_links_in_models_are_copied_as_files_and_nothing_is_deleted_through_them(
    tmp_path: Path,
) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    put_sentinels(tmp_path / "elsewhere")
    models = checkout / "models"
    (models / "linked").symlink_to(tmp_path / "elsewhere")
    (models / "mnist-svm" / "extra.joblib").symlink_to(tmp_path / "elsewhere" / "precious.joblib")
    (models / "mnist-svm" / "precious.py").symlink_to(tmp_path / "elsewhere" / "precious.py")
    (models / "mnist-svm" / "endless").symlink_to(models)
    before = snapshot(tmp_path)
    out = tmp_path / "out"
    target = ["-C", "layers/models", "build-ModelsLayer", f"ARTIFACTS_DIR={out}"]
    done = make(checkout, *target)
    assert 0 == done.returncode, done.stderr
    made = snapshot(out)
    assert "folder" in made.values()
    assert not [path for path, what in made.items() if what.startswith("link")]
    assert (out / "models" / "linked" / "precious.joblib").read_text() == "precious"
    assert (out / "models" / "mnist-svm" / "extra.joblib").read_text() == "precious"
    assert [] == list(out.rglob("*.py"))
    shutil.rmtree(out)
    assert before == snapshot(tmp_path)
    (models / "mnist-svm" / "gone.joblib").symlink_to(tmp_path / "nowhere")
    output = refusal(make(checkout, *target))
    assert (
        "build: models/mnist-svm/gone.joblib cannot be copied: No such file or directory" == output
    )


@needs_python
def test_a_models_layer_that_cannot_fit_alone_is_refused_before_it_is_copied(
    tmp_path: Path,
) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    (checkout / "models" / "big").mkdir()
    with (checkout / "models" / "big" / "big.joblib").open("wb") as file:
        file.truncate(300_000_000)
    out = tmp_path / "out"
    output = refusal(
        make(checkout, "-C", "layers/models", "build-ModelsLayer", f"ARTIFACTS_DIR={out}")
    )
    assert output.startswith("build: the models layer is too large: it has 300,")
    assert "Lambda's limit is 262,144,000; largest parts: models/big (300,000,000), " in output
    assert [] == list(out.iterdir())


def put_model(models: Path, name: str, *, train: bool) -> Path:
    """A model's folder with an artifact of the user's, and a train.py that would replace it."""
    folder = models / name
    folder.mkdir(parents=True)
    (folder / f"{name}.joblib").write_text("the user's")
    if train:
        time.sleep(0.01)
        code = "from pathlib import Path\n"
        code += (
            "(Path(__file__).parent / f'{Path(__file__).parent.name}.joblib').write_text('made')"
        )
        (folder / "train.py").write_text(code)
    return folder / f"{name}.joblib"


def test_make_models_and_clean_leave_the_artifacts_that_they_did_not_make(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    models = checkout / "models"
    (models / "mnist-svm" / "mnist-svm.joblib").unlink()
    users = [
        put_model(models, "without", train=False),
        put_model(models, "beside", train=True),
        put_model(models, "my", train=False),  # the first word of the next
        put_model(models, "my model", train=True),
        put_model(models, "$(touch sentinel)", train=True),
        put_model(models, "'; touch sentinel; '", train=True),
        put_model(models, "-rf", train=True),
    ]
    changed = put_model(models, "changed", train=True)
    mine = put_model(models, "mine $x; y", train=True)
    outside = put_model(tmp_path / "elsewhere", "linked", train=True)
    (models / "linked").symlink_to(outside.parent)
    for path in (changed, mine):
        path.unlink()
    done = make(checkout, "models")
    assert 0 == done.returncode, done.stderr
    assert done.stderr.count("was not made by make: delete it to train again") == 5
    assert {"the user's"} == {path.read_text() for path in [*users, outside]}
    assert "made" == changed.read_text() == mine.read_text()
    assert (models / "mnist-svm" / "mnist-svm.joblib").exists()
    changed.write_text("the user's")
    done = make(checkout, "clean")
    assert 0 == done.returncode, done.stderr
    assert {"the user's"} == {path.read_text() for path in [*users, outside, changed]}
    assert not mine.exists()
    assert not (models / "mnist-svm" / "mnist-svm.joblib").exists()
    assert [] == list(checkout.rglob("sentinel"))


def test_an_artifact_that_make_made_is_trained_again_after_its_script_changed(
    tmp_path: Path,
) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    artifact = put_model(checkout / "models", "mine", train=True)
    artifact.unlink()
    (checkout / "models" / "mnist-svm" / "train.py").unlink()
    script = artifact.parent / "train.py"
    assert "models: training models/mine/mine.joblib\n" == make(checkout, "models").stdout
    assert "" == make(checkout, "models").stdout
    script.write_text(script.read_text().replace("'made'", "'made again'"))
    os.utime(script, (time.time() + 60,) * 2)
    assert "models: training models/mine/mine.joblib\n" == make(checkout, "models").stdout
    assert "made again" == artifact.read_text()


CREATED = (
    ".venv/created-by-make",
    ".venv-audit/created-by-make",
    ".aws-sam/build/x",
    ".mypy_cache/x",
    "build/sbom.cdx.json",
    "build/stock/x",
    "handler/mlserverless.egg-info/x",
)
USERS = (
    "build/notes.txt",
    ".my_cache/x",
    "handler/mine.egg-info/x",
    ".venv-mine/x",
    ".venv-clients/x",  # no mark of make's
    "models/x.joblib",
)


def test_clean_deletes_what_make_created_and_nothing_else(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    for path in CREATED + USERS:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).touch()
    kept = tmp_path / "kept"
    put_sentinels(kept, kept / "stock")
    before = snapshot(kept)
    (checkout / ".ruff_cache").symlink_to(kept)
    (checkout / ".venv-mlserver").symlink_to(kept)
    overrides = [f"{name}={kept}" for name in ("VENV", "BIN", "MODELS", "READY", "CURDIR", "ROOT")]
    done = make(checkout, "clean", *overrides, CDPATH=str(kept))
    assert 0 == done.returncode, done.stderr
    assert {
        "clean: .venv-clients was not created by make: left as it is",
        "clean: .venv-mlserver is a symbolic link: left as it is",
        "clean: .ruff_cache is a symbolic link: left as it is",
    } == set(done.stderr.splitlines())
    assert [] == [path for path in CREATED if (checkout / path).exists()]
    assert [] == [path for path in USERS if not (checkout / path).exists()]
    assert (ROOT / ".venv" / "bin" / "python").exists()  # the copy's was a link to it
    assert before == snapshot(kept)


def test_clean_deletes_nothing_through_a_linked_folder(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    kept = tmp_path / "kept"
    put_sentinels(kept / "stock", kept / "trained", kept / "build")
    for name in ("build", ".aws-sam"):
        (checkout / name).symlink_to(kept)
    shutil.move(checkout / "models", kept / "models")
    (checkout / "models").symlink_to(kept / "models")
    before = snapshot(kept)
    assert 0 == make(checkout, "clean").returncode
    assert before == snapshot(kept)


@pytest.mark.parametrize("name", [".aws-sam", "build", ".venv", ".venv-audit"])
def test_make_does_not_write_through_a_linked_folder(tmp_path: Path, name: str) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    kept = tmp_path / "kept"
    put_sentinels(kept)
    before = snapshot(kept)
    if (checkout / name).exists():
        shutil.rmtree(checkout / name)
    (checkout / name).symlink_to(kept)
    done = make(checkout, "build", "audit")
    assert 0 != done.returncode
    assert f"{name} is a symbolic link, and make writes inside the checkout only" in done.stderr
    assert before == snapshot(kept)


@pytest.mark.parametrize("name", [".venv-audit", ".venv-checkov", ".venv-clients"])
def test_an_environment_that_make_did_not_create_is_not_replaced(tmp_path: Path, name: str) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    shutil.rmtree(checkout / name, ignore_errors=True)
    put_sentinels(checkout / name)
    before = snapshot(checkout / name)
    output = make(checkout, f"{name}/ready").stderr
    assert f"setup: {name} was not created by make: move it away" in output.splitlines()
    assert before == snapshot(checkout / name)


@pytest.mark.parametrize("target", ["clean", "build", "setup", "models"])
def test_make_in_a_folder_that_is_not_a_checkout_does_nothing(tmp_path: Path, target: str) -> None:
    """`make -f …/Makefile clean` would otherwise delete build/ and .venv of any project."""
    put_sentinels(tmp_path / "build", tmp_path / ".venv", tmp_path / "models" / "x")
    before = snapshot(tmp_path)
    output = refusal(make(tmp_path, "-f", str(ROOT / "Makefile"), target))
    assert "run make in the folder of this Makefile, or with -C" in output
    assert before == snapshot(tmp_path)


ODD = ["a b", "$(touch sentinel)", "`touch sentinel`", "x; touch sentinel", "'; touch sentinel; '"]
ODD += ["x\ntouch sentinel", "$(shell touch sentinel)", "-x", "*", 'a"; touch sentinel; "', "$$b"]


@pytest.mark.parametrize("value", ODD)
def test_a_value_reaches_the_shell_unchanged(value: str) -> None:
    show = '--eval=show: ; @printf %s "$$ROOT"'
    for arguments, environment in ([f"ROOT={value}"], {}), ([], {"ROOT": value}):
        assert value == make(ROOT, show, "show", *arguments, **environment).stdout
    assert not (ROOT / "sentinel").exists()


@pytest.mark.parametrize("name", ["PORT", "ROOT", "COUNT", "PART"])
def test_recipes_take_values_from_the_environment(name: str) -> None:
    """Text that make puts into a recipe is shell code."""
    makefile = (ROOT / "Makefile").read_text()
    assert f"override {name} := $(value {name})\n" in makefile
    assert f"$${name}" in makefile
    assert f"$({name})" not in makefile


def test_doctor_takes_any_root_as_one_word() -> None:
    value = "no such folder; touch sentinel"
    done = make(ROOT, "doctor", f"ROOT={value}")
    assert done.stdout.startswith(f"problem  {value} is not a folder")
    assert not (ROOT / "sentinel").exists()


def test_an_unknown_part_of_the_benchmarks_is_refused_with_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/run.py", "cold_start", "os"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (1, "") == (done.returncode, done.stdout)
    parts = "cold_start, local_server, request_path"
    assert f"bench: unknown part 'os': PART is one of {parts}\n" == done.stderr
