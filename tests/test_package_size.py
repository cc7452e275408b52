"""The size of function, layers and models is compared with Lambda's limit before a deployment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from mlserverless.package_size import (
    MAX_UNZIPPED_BYTES,
    TYPICAL_LIBRARIES_BYTES,
    iter_model_files,
    measure_package_size,
)


def put_file(path: Path, size_bytes: int) -> None:
    """Write a sparse file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)


def put_build(folder: Path, *, models_bytes: int) -> Path:
    put_file(folder / "Function" / "mlserverless" / "main.py", 1_000_000)
    put_file(folder / "Function" / "typing.py", 144_000)
    put_file(folder / "SklearnLayer" / "python" / "scipy" / "linalg" / "x.so", 100_000_000)
    put_file(folder / "SklearnLayer" / "python" / "sklearn" / "x.so", 40_000_000)
    put_file(folder / "SklearnLayer" / "python" / "numpy" / "x.so", 20_000_000)
    put_file(folder / "ModelsLayer" / "models" / "m" / "model.joblib", models_bytes)
    return folder


@pytest.mark.parametrize("over", [0, 1])
def test_the_limit_itself_is_allowed_and_one_byte_more_is_not(tmp_path: Path, over: int) -> None:
    built = put_build(tmp_path, models_bytes=101_000_000 + over)
    size = measure_package_size(str(built))
    assert MAX_UNZIPPED_BYTES + over == size.total_bytes
    assert bool(over) == size.is_over_limit
    done = subprocess.run(
        [sys.executable, "-m", "mlserverless.package_size", str(built)],
        env={"PYTHONPATH": str(ROOT / "handler")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert over == done.returncode
    assert f"build: {size.describe()}\n" == (done.stderr if over else done.stdout)


def test_a_package_over_the_limit_names_both_numbers_the_largest_parts_and_the_way_out(
    tmp_path: Path,
) -> None:
    built = put_build(tmp_path, models_bytes=101_000_001)
    assert measure_package_size(str(built)).describe() == (
        "the package is too large: it has 262,144,001 bytes unzipped and Lambda's limit is "
        "262,144,000; largest parts: models/m (101,000,001), SklearnLayer/scipy (100,000,000), "
        "SklearnLayer/sklearn (40,000,000), SklearnLayer/numpy (20,000,000), "
        "Function/mlserverless (1,000,000); keep large models in S3 (parameter ModelBucket) "
        "instead of models/, or remove packages that no model needs from "
        "layers/sklearn/requirements.in"
    )


def test_models_that_are_not_built_yet_count_instead_of_the_built_ones(tmp_path: Path) -> None:
    built = put_build(tmp_path / "build", models_bytes=200_000_000)
    put_file(tmp_path / "models" / "new" / "model.joblib", 856_000)
    put_file(tmp_path / "models" / "new" / "train.py", 1_000_000)  # not in the layer
    put_file(tmp_path / "models" / "new" / "__pycache__" / "x.pyc", 1_000_000)
    size = measure_package_size(str(built), str(tmp_path / "models"))
    assert (162_000_000, False) == (size.total_bytes, size.is_estimated)


@pytest.mark.parametrize("missing", ["Function", "SklearnLayer", ""])
def test_libraries_that_are_not_built_yet_are_estimated_and_the_message_states_it(
    tmp_path: Path, missing: str
) -> None:
    built = put_build(tmp_path / "build", models_bytes=1)
    (built / missing).rename(tmp_path / "gone")
    put_file(tmp_path / "models" / "m" / "model.joblib", 100_000_000)
    size = measure_package_size(str(built), str(tmp_path / "models"))
    assert TYPICAL_LIBRARIES_BYTES + 100_000_000 == size.total_bytes
    assert "libraries are not built yet, estimated at " in size.describe()
    assert "largest parts: function and libraries (" in size.describe()


def test_what_links_lead_to_is_counted_once_and_has_an_end(tmp_path: Path) -> None:
    models = tmp_path / "models"
    put_file(models / "m" / "model.joblib", 10)
    put_file(tmp_path / "elsewhere" / "big.joblib", 1_000)
    (models / "m" / "linked.joblib").symlink_to(tmp_path / "elsewhere" / "big.joblib")
    (models / "linked").symlink_to(tmp_path / "elsewhere")
    (models / "m" / "endless").symlink_to(models)
    (models / "m" / "gone.joblib").symlink_to(tmp_path / "nowhere")
    size = measure_package_size(str(tmp_path), str(models))
    assert {"models/m": 1_010, "models/linked": 1_000} == dict(size.parts[1:])
    relative = [relative for _, relative in iter_model_files(str(models))]
    assert ["linked/big.joblib", "m/gone.joblib", "m/linked.joblib", "m/model.joblib"] == relative


def test_a_folder_without_models_has_no_size(tmp_path: Path) -> None:
    assert [] == measure_package_size(str(tmp_path), str(tmp_path / "none")).parts[1:]
