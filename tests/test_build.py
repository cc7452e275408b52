"""What `make build` makes: small enough for Lambda, ready compiled, the same every time."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from emulator import BUILT, built_layout, python_of_lambda
from mlserverless.package_size import MAX_UNZIPPED_BYTES, TYPICAL_LIBRARIES_BYTES

PARTS = ("Function", "SklearnLayer", "ModelsLayer")
OF_OTHER_PYTHONS = {"tzdata"}  # pinned for systems without a time zone database
UNCHECKED_HASH = 1  # the flags of a .pyc that Lambda takes without a look at its source

python = python_of_lambda()
pytestmark = pytest.mark.skipif(python is None, reason="no CPython 3.13 here to build with")


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def digests() -> dict[str, str]:
    files = sorted(path for part in PARTS for path in (BUILT / part).rglob("*") if path.is_file())
    return {
        str(path.relative_to(BUILT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    built_layout(python or "")


def test_the_function_and_its_layers_fit_lambdas_limit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    packages = {path: sizes(path) for part in PARTS for path in (BUILT / part).glob("python/*")} | {
        BUILT / part: sizes(BUILT / part) for part in PARTS
    }
    with capsys.disabled():
        for path, size in sorted(packages.items(), key=lambda item: -item[1])[:8]:
            sys.stdout.write(f"\n  {size:>11,} bytes  {path.relative_to(BUILT)}")
    assert sum(sizes(BUILT / part) for part in PARTS) < MAX_UNZIPPED_BYTES


def test_a_build_prints_the_total_beside_lambdas_limit() -> None:
    done = subprocess.run(["make", "build"], cwd=ROOT, check=True, capture_output=True, text=True)
    total = sum(sizes(BUILT / part) for part in PARTS)
    line = f"build: the package has {total:,} bytes unzipped; Lambda's limit is 262,144,000"
    assert line == done.stdout.splitlines()[-1]


def test_the_size_that_is_assumed_before_a_build_is_that_of_a_build() -> None:
    libraries = sizes(BUILT / "Function") + sizes(BUILT / "SklearnLayer")
    assert pytest.approx(libraries, rel=0.02) == TYPICAL_LIBRARIES_BYTES


def test_every_module_has_bytecode_of_lambdas_python_bound_to_no_timestamp() -> None:
    magic = subprocess.run(
        [python or "", "-c", "import importlib.util as u; print(u.MAGIC_NUMBER.hex())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    expected = bytes.fromhex(magic) + UNCHECKED_HASH.to_bytes(4, "little")
    compiled = [path for part in PARTS for path in (BUILT / part).rglob("*.pyc")]
    assert len(compiled) > 1000
    assert [] == [path for path in compiled if expected != path.read_bytes()[:8]]


def test_the_only_sources_are_our_own_and_those_that_are_read_at_run_time(digits: Path) -> None:
    assert digits.exists()
    function = BUILT / "Function"
    expected = set((function / "mlserverless").glob("*.py"))
    expected |= {function / "anyio" / "__init__.py", function / "anyio" / "abc" / "__init__.py"}
    sources = {path for part in PARTS for path in (BUILT / part).rglob("*.py")}
    assert expected == sources
    for path in sources:
        assert (path.parent / "__pycache__" / f"{path.stem}.cpython-313.pyc").exists()
        assert not path.with_suffix(".pyc").exists()


def run_built(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code under Lambda's Python on what was built, with Lambda's memory of 1,769 MB."""
    path = [BUILT / "Function", BUILT / "SklearnLayer" / "python"]
    return subprocess.run(
        [python or "", "-c", code],
        env={
            "PYTHONPATH": ":".join(map(str, path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
            "MLSERVER_MODEL_REPOSITORY_ROOT": str(BUILT / "ModelsLayer" / "models"),
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
    )


def test_init_imports_of_anyio_only_what_it_uses() -> None:
    """It reads its own source to import lazily; without the source it imports 38 modules."""
    code = "import mlserverless.main, sys, json\nprint(json.dumps(sorted(sys.modules)))"
    names = json.loads(run_built(code).stdout)
    of_anyio = [name for name in names if name.partition(".")[0] == "anyio"]
    assert 15 >= len(of_anyio), of_anyio
    assert 415 >= len(names), len(names)


# Lambda has no /dev/shm: the system call behind a semaphore fails as it does here
WITHOUT_SEMAPHORES = """
import json, os, _multiprocessing
class SemLock:
    SEM_VALUE_MAX = 2**31 - 1
    def __init__(self, *arguments, **named):
        raise OSError(38, "Function not implemented")
_multiprocessing.SemLock = SemLock
from mlserverless.main import handler
event = json.load(open(os.environ["EVENT"]))
print(handler(event, None)["body"])
"""


@pytest.mark.parametrize(("joblib", "warnings"), [({}, 0), ({"JOBLIB_MULTIPROCESSING": "1"}, 1)])
def test_the_first_load_warns_of_no_missing_semaphores(
    joblib: dict[str, str], warnings: int
) -> None:
    event = str(ROOT / "events" / "http-api-infer.json")
    done = run_built(WITHOUT_SEMAPHORES, EVENT=event, **joblib)
    assert '"data":[8]' in done.stdout
    assert warnings == done.stderr.count("UserWarning")


def test_whatever_is_imported_late_can_be_imported_from_what_was_built() -> None:
    """An import that fails must not fail at a request."""
    code = "import importlib, mlserverless.imports as i\n"
    code += "for name, names in i.LATE.items():\n"
    code += "    module = i._real(name)\n"
    code += "    assert all(hasattr(module, each) for each in names), name\n"
    code += "assert not [m for m in i.sys.modules.values() if isinstance(m, i._LateModule)]"
    run_built(code)


def test_two_builds_of_one_commit_are_byte_identical() -> None:
    first = digests()
    subprocess.run(["make", "build"], cwd=ROOT, check=True, capture_output=True)
    assert [] == sorted(path for path, _ in first.items() ^ digests().items())


def test_the_deployed_package_is_the_function_alone() -> None:
    ours = {path.name for path in (BUILT / "Function" / "mlserverless").glob("*.py")}
    source = {path.name for path in (ROOT / "handler" / "mlserverless").glob("*.py")}
    assert source - {"__main__.py", "cli.py", "doctor.py", "package_size.py", "profile.py"} == ours
    assert ["mnist-svm.joblib", "model-settings.json", "settings.json"] == sorted(
        path.name for path in (BUILT / "ModelsLayer" / "models" / "mnist-svm").iterdir()
        if path.name != "ask.py"
    )  # fmt: skip


def complaints(cwd: Path, *command: str) -> list[str]:
    """What a make that must fail says, without make's own lines."""
    done = subprocess.run(["make", *command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return [line for line in done.stderr.splitlines() if not line.startswith("make")]


def test_a_models_layer_without_its_artefact_fails_with_one_line(tmp_path: Path) -> None:
    for folder in ("layers", "handler"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "template.yaml", tmp_path)
    model = tmp_path / "models" / "mine"
    model.mkdir(parents=True)
    (model / "train.py").touch()
    target = ["build-ModelsLayer", f"ARTIFACTS_DIR={tmp_path / 'out'}"]
    sentence = "build: models/mine has no artifact: run `make models`"
    assert [sentence] == complaints(tmp_path, "-C", "layers/models", *target)


def test_a_build_without_lambdas_python_fails_with_one_line_that_says_how_to_get_it() -> None:
    target = ["build-Function", "PYTHON_OF_LAMBDA=", "ARTIFACTS_DIR=/dev/null"]
    sentence = "build: CPython 3.13 is not here; get it with: uv python install 3.13"
    assert [sentence] == complaints(ROOT, "-C", "handler", *target)


def test_the_workshops_python_is_not_taken_for_lambdas(tmp_path: Path) -> None:
    """`make PYTHON=… build` hands its variables down; the bytecode stays Lambda's."""
    command = ["make", "-C", "handler", "build-Function", "PYTHON=false"]
    subprocess.run(
        [*command, f"ARTIFACTS_DIR={tmp_path}"], cwd=ROOT, check=True, capture_output=True
    )


def test_the_list_of_parts_is_what_was_built() -> None:
    """CycloneDX, every part with the hashes that it was pinned by."""
    bill = json.loads((ROOT / "build" / "sbom.cdx.json").read_text())
    assert "CycloneDX" == bill["bomFormat"]
    listed = {(canonical(each["name"]), each["version"]) for each in bill["components"]}
    installed = set()
    for folder in BUILT.rglob("*.dist-info"):
        name, version = folder.name.removesuffix(".dist-info").split("-")
        installed.add((canonical(name), version))
    assert installed == {part for part in listed if part[0] not in OF_OTHER_PYTHONS}
    assert len(installed) > 20
    for each in bill["components"]:
        (source,) = each["externalReferences"]
        assert {"SHA-256"} == {found["alg"] for found in source["hashes"]}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
