"""Downloads that processes share: once each, whole or not there, never what a dead one left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from conftest import ROOT
from mlserverless.cache import Cache, Interrupted
from mlserverless.errors import Unavailable

BYTES = bytes(range(256)) * 40


class Download:
    """Counts how often it is asked for."""

    def __init__(self, raw: bytes = BYTES, seconds: float = 0.0) -> None:
        self.raw = raw
        self.seconds = seconds
        self.times = 0

    def __call__(self, file: BinaryIO) -> None:
        self.times += 1
        file.write(self.raw[: len(self.raw) // 2])
        time.sleep(self.seconds)
        file.write(self.raw[len(self.raw) // 2 :])


def read(
    cache: Cache, fill: Callable[[BinaryIO], None], version: str = "1", seconds: float = 5
) -> bytes | None:
    file = cache.open("model", version, len(BYTES), fill, seconds)
    if file is None:
        return None
    with file:
        return file.read()


def files(tmp_path: Path) -> list[str]:
    """What lies there, without locks."""
    (folder,) = tmp_path.iterdir()
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_what_a_living_cache_holds_is_not_downloaded_again(tmp_path: Path) -> None:
    first, second, download = Cache(str(tmp_path)), Cache(str(tmp_path)), Download()
    assert [BYTES] * 3 == [read(cache, download) for cache in (first, second, first)]
    assert 1 == download.times


def test_whoever_comes_meanwhile_waits_for_the_download(tmp_path: Path) -> None:
    download = Download(seconds=0.2)
    with ThreadPoolExecutor(4) as pool:
        caches = [Cache(str(tmp_path)) for _ in range(4)]
        assert [BYTES] * 4 == list(pool.map(lambda cache: read(cache, download), caches))
    assert 1 == download.times


def test_nobody_waits_longer_than_a_request_may(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(read, Cache(str(tmp_path)), Download(seconds=0.5))
        while not (tmp_path.exists() and list(tmp_path.glob("*/*.part"))):
            time.sleep(0.001)
        with pytest.raises(Unavailable, match="still downloading"):
            read(Cache(str(tmp_path)), Download(), seconds=0.05)
        assert BYTES == slow.result()


HOLD = (
    "import sys, time\n"
    "from mlserverless.cache import Cache\n"
    "def fill(file):\n"
    "    file.write(b'x' * int(sys.argv[2]))\n"
    "    if sys.argv[3] == 'half':\n"
    "        print('half', flush=True)\n"
    "        time.sleep(60)\n"
    "cache = Cache(sys.argv[1])\n"
    "file = cache.open('model', '1', 10240, fill, 5)\n"
    "print(len(file.read()), flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.mark.parametrize(("written", "said"), [(10240, "10240\n"), (17, "half\n")])
def test_what_a_dead_process_left_is_not_used(tmp_path: Path, written: int, said: str) -> None:
    """Neither its half of a file nor, for it cannot be asked what it was, its whole one."""
    download = Download()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), str(written), said.strip()],
        env={"PYTHONPATH": str(ROOT / "handler")},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert said == process.stdout.readline()
            if written == 10240:
                assert b"x" * 10240 == read(Cache(str(tmp_path)), download)
        finally:
            process.kill()
    assert BYTES == read(Cache(str(tmp_path)), download)
    assert 1 == download.times
    assert 1 == len(files(tmp_path))


def test_a_download_that_fails_leaves_nothing_and_the_next_one_is_whole(tmp_path: Path) -> None:
    def cut(file: BinaryIO) -> None:
        file.write(BYTES[:100])
        raise Unavailable("planted")

    cache = Cache(str(tmp_path))
    with pytest.raises(Unavailable, match="planted"):
        read(cache, cut)
    assert [] == files(tmp_path)
    assert BYTES == read(cache, Download())


def interrupt(at: int) -> Callable[[BinaryIO], None]:
    """A download that ends after so many bytes of the object."""

    def fill(file: BinaryIO) -> None:
        file.write(BYTES[file.tell() : at])
        raise Interrupted("planted")

    return fill


def finish(file: BinaryIO) -> None:
    """A download of the rest of the object, which must not be all of it."""
    assert file.tell() > 0
    file.write(BYTES[file.tell() :])


def test_an_interrupted_download_is_continued_by_this_process_and_others(tmp_path: Path) -> None:
    first, second = Cache(str(tmp_path)), Cache(str(tmp_path))
    descriptors = len(os.listdir("/proc/self/fd"))
    for cache, at in ((first, 100), (second, 200), (first, 300)):
        with pytest.raises(Interrupted):
            read(cache, interrupt(at))
        (part,) = tmp_path.glob("*/*.part")
        assert BYTES[:at] == part.read_bytes()
    assert BYTES == read(second, finish)
    assert BYTES == read(first, Download(b"not called"))
    assert [] == list(tmp_path.glob("*/*.part"))
    assert descriptors + 2 == len(os.listdir("/proc/self/fd")), "each holds the file once"


def test_a_download_of_another_version_is_not_continued(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path))
    with pytest.raises(Interrupted):
        read(cache, interrupt(100))
    assert BYTES == read(cache, Download(), version="2")
    assert 1 == len(files(tmp_path))


def test_a_continued_download_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path))
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Interrupted):
        read(cache, interrupt(100))

    def fail(_: BinaryIO) -> None:
        raise Unavailable("planted")

    with pytest.raises(Unavailable):
        read(cache, fail)
    assert [] == files(tmp_path)
    assert descriptors == len(os.listdir("/proc/self/fd"))
    assert BYTES == read(cache, Download())


DIE = (
    "import os, sys\n"
    "from mlserverless.cache import Cache, Interrupted\n"
    "def fill(file):\n"
    "    file.write(b'x' * 50)\n"
    "    if sys.argv[2] == 'while it fills':\n"
    "        os._exit(1)\n"
    "    raise Interrupted('planted')\n"
    "try:\n"
    "    Cache(sys.argv[1]).open('model', '1', 10240, fill, 5)\n"
    "except Interrupted:\n"
    "    os._exit(1)\n"
)


@pytest.mark.parametrize(
    ("when", "is_shared"),
    [("while it fills", False), ("while it fills", True), ("between two calls", False)],
)
def test_what_a_dead_process_has_left_of_a_download_is_not_continued(
    tmp_path: Path, when: str, is_shared: bool
) -> None:
    """Also where a living process holds the same part: it may lack bytes in its middle."""
    cache = Cache(str(tmp_path))
    if is_shared:
        with pytest.raises(Interrupted):
            read(cache, interrupt(100))
    command = [sys.executable, "-c", DIE, str(tmp_path), when]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT / "handler")}, check=False)
    assert 1 == done.returncode
    assert 1 == len(list(tmp_path.glob("*/*.part")))
    download = Download()
    assert BYTES == read(cache, download)
    assert 1 == download.times


def test_a_deleted_file_is_downloaded_again(tmp_path: Path) -> None:
    cache, download = Cache(str(tmp_path)), Download()
    cache.forget("model")
    descriptors = len(os.listdir("/proc/self/fd"))
    assert BYTES == read(cache, download)
    cache.forget("model")
    assert [] == files(tmp_path)
    assert descriptors == len(os.listdir("/proc/self/fd"))
    assert BYTES == read(cache, download)
    assert 2 == download.times


def test_of_one_object_one_version_stays(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    for version in "123":
        assert BYTES == read(cache, Download(), version)
        assert 1 == len(files(tmp_path))
    assert before + 1 == len(os.listdir("/proc/self/fd")), "held by one open file"


def a_file(place: Path) -> None:
    place.write_text("")


def others_may_write(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def a_link(place: Path) -> None:
    (place.parent / "elsewhere").mkdir(mode=0o700)
    place.symlink_to(place.parent / "elsewhere")


@pytest.mark.parametrize("planted", [a_file, others_may_write, a_link])
def test_a_folder_that_is_not_ours_alone_is_not_used(
    tmp_path: Path, planted: Callable[[Path], None]
) -> None:
    """Whoever could write what is unpickled could run code."""
    planted(tmp_path / f"mlserverless-{os.geteuid()}")
    download = Download()
    assert read(Cache(str(tmp_path)), download) is None
    assert 0 == download.times


def test_a_folder_that_is_not_there_or_has_no_room_is_no_failure(tmp_path: Path) -> None:
    assert read(Cache(str(tmp_path / "nowhere")), Download()) is None
    code = (
        "import resource, sys\n"
        "from mlserverless.cache import Cache\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "def fill(file): raise SystemExit('asked before there is room')\n"
        "print(Cache(sys.argv[1]).open('model', '1', 10240, fill, 5))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={"PYTHONPATH": str(ROOT / "handler")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "None\n" == done.stdout
    assert [] == files(tmp_path)
