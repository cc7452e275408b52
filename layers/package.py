"""Build one part of what is deployed into an empty folder, the one in ARTIFACTS_DIR.

    ARTIFACTS_DIR=/empty/folder python3.13 layers/package.py function|sklearn|models PLATFORM

`sam build` calls this through the part's Makefile, under CPython 3.13. Nothing outside the folder
is written or deleted: the folder must be empty at the start, so what is deleted in it was created
here, and no symbolic link is followed to delete something.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT / "handler"))

from mlserverless.package_size import (  # noqa: E402 # the path comes first
    FUNCTION,
    SKLEARN_LAYER,
    PackageSize,
    iter_model_files,
    measure_models,
    measure_parts,
)

PYTHON_VERSION = "3.13"
TASK_ROOT = "/var/task"  # where Lambda mounts the function's package
LAYER_PYTHON = "/opt/python"  # where Lambda mounts the layer's folder `python`

# modules that run on a developer's machine only
NOT_DEPLOYED = ("__main__.py", "cli.py", "doctor.py", "package_size.py", "profile.py")
# anyio reads these two files to find out what it may import later; without them it imports
# everything at once, 23 modules more at INIT
READ_THEIR_OWN_SOURCE = ("anyio/__init__.py", "anyio/abc/__init__.py")
ONLY_FOR_DEVELOPERS = (".pyi", ".pyx", ".pxd", ".h", ".c", ".cpp", ".a")
SCRIPTS_AND_SAMPLES = (
    "bin",
    ".lock",
    "sklearn/datasets/data",
    "sklearn/datasets/descr",
    "sklearn/datasets/images",
)
ARTIFACT_SUFFIXES = (".joblib", ".pickle", ".pkl", ".skops")
SOURCES = ("handler", "layers", "models")


def find_artifacts_folder() -> Path:
    """Return the folder to build in; create it if it is missing.

    Exits with one line if it is not named by an absolute path, is not empty, or is part of the
    sources.
    """
    given = os.environ.get("ARTIFACTS_DIR", "")
    if not os.path.isabs(given):
        sys.exit("build: ARTIFACTS_DIR is not an absolute path: run `make build` or `sam build`")
    folder = Path(given).resolve()
    if any(folder.is_relative_to(CHECKOUT / source) for source in SOURCES):
        sys.exit("build: ARTIFACTS_DIR is a folder of the sources: name an empty one elsewhere")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        sys.exit(f"build: ARTIFACTS_DIR cannot be used: {error.strerror}; name an empty folder")
    if not is_empty:
        sys.exit(
            "build: ARTIFACTS_DIR is not empty, and a build deletes files: name an empty folder"
        )
    return folder


def run(command: list[str], **environment: str) -> None:
    """Run a command; exit with its status if it fails. It prints its own error."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        done = subprocess.run(command, env=base | environment, check=False)
    except FileNotFoundError:
        sys.exit(f"build: {command[0]} is not on PATH: run `make setup`")
    if done.returncode != 0:
        sys.exit(done.returncode)


def install(requirements: Path, target: Path, platform: str) -> None:
    """Install what `requirements` pins for Lambda, without files that only developers read."""
    options = ["--python-version", PYTHON_VERSION, "--python-platform", platform]
    options += ["--only-binary", ":all:", "--no-deps", "--require-hashes", "--link-mode", "copy"]
    command = ["uv", "pip", "install", "--quiet", "--target", str(target)]
    run([*command, "--python", sys.executable, *options, "-r", str(requirements)])
    for path in list(iter_inside(target)):
        relative = path.relative_to(target).as_posix()
        # numpy's own testing imports one of its tests
        is_test = path.name == "tests" and path.is_dir() and "numpy/_core/" not in relative
        if is_test or relative in SCRIPTS_AND_SAMPLES:
            delete(path)
        elif path.is_file() and (path.suffix in ONLY_FOR_DEVELOPERS or path.name == "RECORD"):
            path.unlink()
    for path in reversed(list(iter_inside(target))):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def iter_inside(folder: Path) -> Iterator[Path]:
    """Yield everything below `folder`, parents first; symbolic links are not followed."""
    for path, folders, files in os.walk(folder):
        yield from (Path(path) / name for name in [*folders, *files])


def delete(path: Path) -> None:
    """Delete a file, a folder or a symbolic link, never what a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def compile_sources(folder: Path, mounted_at: str, *options: str) -> None:
    """Write bytecode that Lambda takes without a look at its source.

    One process and one order of hashing: both leave a mark in the bytes.
    """
    mode = ["--invalidation-mode", "unchecked-hash", *options]
    paths = ["-s", str(folder), "-p", mounted_at, str(folder)]
    run([sys.executable, "-m", "compileall", "-q", "-j", "1", *mode, *paths], PYTHONHASHSEED="0")


def replace_sources_by_bytecode(folder: Path, mounted_at: str) -> None:
    """Compile each module and delete its source, except what is READ_THEIR_OWN_SOURCE."""
    compile_sources(folder, mounted_at, "-b")
    kept = {folder / relative for relative in READ_THEIR_OWN_SOURCE}
    for path in list(iter_inside(folder)):
        if path.suffix == ".py" and path.is_file():
            (path.with_suffix(".pyc") if path in kept else path).unlink()


def build_function(folder: Path, platform: str) -> None:
    """Put the function's small dependencies and our own modules into `folder`."""
    install(CHECKOUT / "handler" / "requirements.txt", folder, platform)
    replace_sources_by_bytecode(folder, TASK_ROOT)
    ignored = shutil.ignore_patterns(*NOT_DEPLOYED, "__pycache__")
    shutil.copytree(CHECKOUT / "handler" / "mlserverless", folder / "mlserverless", ignore=ignored)
    compile_sources(folder, TASK_ROOT)
    refuse_if_too_large(PackageSize(measure_parts(str(folder), FUNCTION), name="function"))


def build_sklearn(folder: Path, platform: str) -> None:
    """Put scikit-learn and what models need besides into `folder`/python."""
    target = folder / "python"
    install(CHECKOUT / "layers" / "sklearn" / "requirements.txt", target, platform)
    replace_sources_by_bytecode(target, LAYER_PYTHON)
    refuse_if_too_large(
        PackageSize(measure_parts(str(target), SKLEARN_LAYER), name="scikit-learn layer")
    )


def build_models(folder: Path, _: str) -> None:
    """Copy models/ to `folder`/models; what a symbolic link points to is copied in its place."""
    models = CHECKOUT / "models"
    for script in sorted(models.glob("*/train.py")):
        if not any(path.suffix in ARTIFACT_SUFFIXES for path in script.parent.rglob("*")):
            sys.exit(f"build: models/{script.parent.name} has no artifact: run `make models`")
    refuse_if_too_large(PackageSize(measure_models(str(models)), name="models layer"))
    (folder / "models").mkdir()
    # listed before the first copy, so that a link to the build folder has an end
    for path, relative in list(iter_model_files(str(models))):
        target = folder / "models" / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy(path, target)
        except OSError as error:
            sys.exit(f"build: models/{relative} cannot be copied: {error.strerror or error}")


def refuse_if_too_large(size: PackageSize) -> None:
    """Exit with one line if one part alone is over Lambda's limit."""
    if size.is_over_limit:
        sys.exit(f"build: {size.describe()}")


BUILDERS = {"function": build_function, "sklearn": build_sklearn, "models": build_models}

if __name__ == "__main__":
    part, platform = sys.argv[1:]
    BUILDERS[part](find_artifacts_folder(), platform)
