"""The command `mlserverless`, also as `python -m mlserverless`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mlserverless.errors import one_line

DISTRIBUTION = "mlserverless"
USAGE_ERROR = 2  # argparse's exit status for a command that cannot run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status, as `cli.main` does.

    `cli` is imported here, so that a dependency that is not installed is one line on stderr and the
    status 2. The line names the command that installs the dependency.
    """
    try:
        from mlserverless.cli import main as run  # noqa: PLC0415 - see above

        return run(arguments)
    except ModuleNotFoundError as error:
        module = (error.name or DISTRIBUTION).partition(".")[0]
        if module == DISTRIBUTION:
            raise
        sys.stderr.write(f"mlserverless: {_describe_missing_module(module)}\n")
        return USAGE_ERROR


def _describe_missing_module(module: str) -> str:
    """Say why `module` cannot be imported and how to install it."""
    if module in sys.stdlib_module_names:  # fcntl and resource are missing on Windows
        return f"Python's module {module} is not available: run mlserverless on Linux, or in WSL"
    return (
        f"the Python package {one_line(module)} is not installed: install it with: "
        f"pip install '{_find_requirement(module)}'"
    )


def _find_requirement(module: str) -> str:
    """Return the requirement of this package that `module` belongs to, else the module's name."""
    from importlib import metadata  # noqa: PLC0415 - only a failure needs it

    name = {"sklearn": "scikit-learn"}.get(module, module)
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from the source folder
        requirements = []
    return next((each for each in requirements if each.startswith(f"{name}>=")), name)


if __name__ == "__main__":
    sys.exit(main())
