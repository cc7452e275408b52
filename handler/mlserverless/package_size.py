"""Compare the function, its layers and the models with Lambda's limit for unzipped packages.

    python -m mlserverless.package_size BUILD_FOLDER

`make build` runs this on what SAM built; `mlserverless doctor` runs it before a build. It is not
deployed and imports the standard library only.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

# bytes of a function with its layers, unzipped; "Lambda quotas" in AWS's developer guide
MAX_UNZIPPED_BYTES: Final = 262_144_000
# bytes of the function and the scikit-learn layer as pinned, x86_64, 2026-11-25; used where
# nothing is built yet, and held within 2 % by tests/test_build.py
TYPICAL_LIBRARIES_BYTES: Final = 221_950_000
MAX_PARTS_NAMED: Final = 5

FUNCTION: Final = "Function"
SKLEARN_LAYER: Final = "SklearnLayer"
MODELS_LAYER: Final = "ModelsLayer"


class Part(NamedTuple):
    """A folder or file of the package, with the bytes of all its files."""

    name: str
    size_bytes: int


class PackageSize(NamedTuple):
    """The parts of a package; `is_estimated` if the libraries were not built."""

    parts: list[Part]
    is_estimated: bool = False
    name: str = "package"

    @property
    def total_bytes(self) -> int:
        """Bytes that Lambda would unzip."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def is_over_limit(self) -> bool:
        """Whether Lambda would refuse the package."""
        return self.total_bytes > MAX_UNZIPPED_BYTES

    def describe(self) -> str:
        """Return one line: total and limit; over the limit the largest parts and the way out."""
        total = f"{self.total_bytes:,} bytes unzipped"
        if self.is_estimated:
            total += f" (libraries are not built yet, estimated at {TYPICAL_LIBRARIES_BYTES:,})"
        if not self.is_over_limit:
            return f"the {self.name} has {total}; Lambda's limit is {MAX_UNZIPPED_BYTES:,}"
        by_size = sorted(self.parts, key=lambda part: (-part.size_bytes, part.name))
        largest = ", ".join(
            f"{part.name} ({part.size_bytes:,})" for part in by_size[:MAX_PARTS_NAMED]
        )
        return (
            f"the {self.name} is too large: it has {total} and Lambda's limit is "
            f"{MAX_UNZIPPED_BYTES:,}; largest parts: {largest}; keep large models in S3 (parameter "
            "ModelBucket) instead of models/, or remove packages that no model needs from "
            "layers/sklearn/requirements.in"
        )


def measure_package_size(build_folder: str, models_folder: str | None = None) -> PackageSize:
    """Measure what `sam build` left in `build_folder`.

    `models_folder` is measured in place of the built models layer if it is given. If function or
    scikit-learn layer are not built, both together count as TYPICAL_LIBRARIES_BYTES.
    """
    function = os.path.join(build_folder, FUNCTION)
    libraries = os.path.join(build_folder, SKLEARN_LAYER, "python")
    is_estimated = not (os.path.isdir(function) and os.path.isdir(libraries))
    if is_estimated:
        parts = [Part("function and libraries", TYPICAL_LIBRARIES_BYTES)]
    else:
        parts = [*measure_parts(function, FUNCTION), *measure_parts(libraries, SKLEARN_LAYER)]
    if models_folder is None:
        models_folder = os.path.join(build_folder, MODELS_LAYER, "models")
    parts += measure_models(models_folder)
    return PackageSize(parts, is_estimated)


def measure_parts(folder: str, label: str) -> list[Part]:
    """Measure each entry of a built folder, symbolic links not followed."""
    parts = []
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            size_bytes = sum(
                os.lstat(os.path.join(path, name)).st_size
                for path, _, names in os.walk(entry.path)
                for name in names
            )
        else:
            size_bytes = entry.stat(follow_symlinks=False).st_size
        parts.append(Part(f"{label}/{entry.name}", size_bytes))
    return parts


def measure_models(models_folder: str) -> list[Part]:
    """Measure each model's folder as the models layer would hold it."""
    sizes: dict[str, int] = {}
    for path, relative in iter_model_files(models_folder):
        try:
            status = os.stat(path)
        except OSError:  # a symbolic link to nothing; loading the model reports it
            continue
        if stat.S_ISREG(status.st_mode):
            name = relative.split(os.sep)[0]
            sizes[name] = sizes.get(name, 0) + status.st_size
    return [Part(f"models/{name}", size_bytes) for name, size_bytes in sizes.items()]


def iter_model_files(models_folder: str) -> Iterator[tuple[str, str]]:
    """Yield path and relative path of every file that the models layer holds.

    Symbolic links are followed: on Lambda there is nothing that they could point to. A link to a
    folder that contains it is skipped, because it has no end.
    """
    yield from _iter_files(models_folder, "", frozenset({os.path.realpath(models_folder)}))


def _iter_files(folder: str, relative: str, parents: frozenset[str]) -> Iterator[tuple[str, str]]:
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        path, inner = os.path.join(folder, name), os.path.join(relative, name)
        if os.path.isdir(path):
            real = os.path.realpath(path)
            if name != "__pycache__" and real not in parents:
                yield from _iter_files(path, inner, parents | {real})
        elif not name.endswith(".py"):
            yield path, inner


def main() -> int:
    """Print one line; return 1 if Lambda would refuse the package."""
    size = measure_package_size(sys.argv[1])
    print(f"build: {size.describe()}", file=sys.stderr if size.is_over_limit else sys.stdout)
    return 1 if size.is_over_limit else 0


if __name__ == "__main__":
    sys.exit(main())
