"""What would keep a repository from being served, found before it is deployed.

Each finding is one line, and says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from mlserverless.errors import MLServerlessError, quote
from mlserverless.package_size import measure_package_size
from mlserverless.registry import Registry
from mlserverless.repository import S3Repository, open_repository
from mlserverless.settings import Settings

_S3 = "s3://"


class Finding(NamedTuple):
    """One line: whether it is well, and what it is or what to do about it."""

    well: bool
    sentence: str


def examine(root: str, settings: Settings) -> Iterator[Finding]:
    """Look at a folder or at `s3://bucket/prefix` as the function would, and load every model."""
    if root.startswith(_S3):
        bucket, _, prefix = root.removeprefix(_S3).partition("/")
        if prefix.startswith("/"):
            mended = f"{_S3}{bucket}/{prefix.strip('/')}"
            yield Finding(False, f"the prefix starts with a slash, no key does: say {mended}")
            return
    elif not os.path.isdir(root):
        yield Finding(False, f"{root} is no folder: name the one that holds your models")
        return
    else:
        yield from _find_oversize(root)
    repository = open_repository(root)
    try:
        if isinstance(repository, S3Repository):
            yield from _region(repository)
        registry = Registry(repository, settings)
        states = registry.index()
        registry.load_all()
        for model in registry.loaded():
            model.example()  # an estimator that is not fitted loads, and fails to predict
        states = registry.index()
    except MLServerlessError as error:
        yield Finding(False, f"{error}: mend the name, or what its owner allows you")
        return
    if not states:
        yield Finding(False, f"no model-settings.json below {root}: copy your model's folder there")
    for state in states:
        name = f"{quote(state.name)} {state.version or 'without a version'}"
        if state.ready:
            yield Finding(True, f"{name} loads")
        else:
            yield Finding(False, f"{name}: {state.reason}: mend its folder and look again")


def _find_oversize(root: str) -> Iterator[Finding]:
    """Yield a problem if models, function and layers together are over Lambda's limit."""
    checkout = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    size = measure_package_size(os.path.join(checkout, ".aws-sam", "build"), root)
    if size.is_over_limit:
        yield Finding(False, size.describe())


def _region(repository: S3Repository) -> Iterator[Finding]:
    there = repository.s3.region(repository.bucket)
    here = repository.s3.client.meta.region_name
    if there == here:
        yield Finding(True, f"bucket {repository.bucket} lies in {here}, as the function will")
    else:
        yield Finding(
            False,
            f"bucket {repository.bucket} lies in {there}, the function would run in {here}: "
            f"deploy with --region {there}",
        )
