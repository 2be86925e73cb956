import contextlib
import errno
import os
import re
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cvae_jax.files import (
    reason,
    remove_leftovers,
    require_writable,
    sync_folder,
    user_path,
    whole_file,
    write_arrays,
)
from cvae_jax.types import ConfigError, UserError

Usage = namedtuple("Usage", ["total", "used", "free"])


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory; only root may."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give the folder of a file system of 64 kB."""
    with mounted(tmp_path / "small disk", "size=64k") as folder:
        yield folder


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Give a folder that nobody can write to, with a file and a folder in it."""
    folder = tmp_path / "read only"
    if os.geteuid():
        folder.mkdir()
        fill(folder)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    with mounted(folder, "size=64k"):
        fill(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder


def fill(folder: Path) -> None:
    (folder / "old").write_bytes(b"old")
    (folder / "old").chmod(0o444)
    (folder / "sub").mkdir(mode=0o555)


def write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def write_half(path: Path, error: BaseException) -> None:
    with whole_file(path) as file:
        file.write(b"half of the n")
        raise error


def test_a_file_and_its_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write(path, b"content")
    assert path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_replaced_by_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"the old one, which is longer")
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_writer_that_fails_leaves_what_was_there(
    error: BaseException, old: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(type(error)):
        write_half(path, error)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({"file": old} if old else {})


def test_a_full_disk_is_an_error_that_names_the_file_and_the_old_one_stands(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    expected = rf"{path} can't be written: No space left on device \([0-9.]+ [kMGT]?B free there\)$"
    with pytest.raises(UserError, match=expected):
        write_half(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"old"}


@pytest.mark.parametrize("place", ["file/below", "file/far/below", "folder", "x" * 300])
def test_a_place_that_cannot_be_written_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path / place} can't be written: "):
        write(tmp_path / place, b"new")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_is_as_open_to_others_as_the_user_wants(
    umask: int, mode: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_a_disk_that_is_really_full_leaves_the_old_file_and_nothing_else(small_disk: Path) -> None:
    path = small_disk / "file"
    path.write_bytes(b"old")
    # What is left once the half that was written has gone again: 64 kB less a page of 4 KiB.
    expected = f"{path} can't be written: No space left on device (61.4 kB free there)"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        write(path, bytes(100_000))
    assert {p.name: p.read_bytes() for p in small_disk.iterdir()} == {"file": b"old"}


@pytest.mark.parametrize("place", ["old", "new", "sub/new", "new/new"])
def test_a_folder_that_cannot_be_written_keeps_what_it_has(place: str, read_only: Path) -> None:
    expected = rf"^{read_only / place} can't be written: (Read-only file system|Permission denied) "
    with pytest.raises(UserError, match=expected):
        write(read_only / place, b"new")
    assert sorted(path.name for path in read_only.rglob("*")) == ["old", "sub"]
    assert (read_only / "old").read_bytes() == b"old"


@pytest.mark.parametrize("place", ["there", "nowhere"])
def test_a_link_is_replaced_and_what_it_leads_to_stays(place: str, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to(place)
    write(tmp_path / "link", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"there": b"old", "link": b"new"}


def test_a_new_name_is_on_the_disk_before_the_file_counts_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, (tmp_path / "file").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "file", b"content")
    inode = (tmp_path / "file").stat().st_ino
    assert synced == [(inode, False), (tmp_path.stat().st_ino, True)]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EACCES])
def test_a_file_is_written_where_the_system_cannot_sync_folders(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "open", refuse)  # pathlib and `open` have their own
    write(tmp_path / "file", b"content")
    sync_folder(tmp_path / "nowhere")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a file"), "No space left on device"),
        (ValueError("\n\n  what was wrong \nmore\nof it"), "what was wrong"),
        (ValueError(), "ValueError"),
        (ValueError(" \n "), "ValueError"),
        (KeyError("name"), "'name'"),
        (RuntimeError("x" * 9000), "x" * 300 + "..."),
    ],
    ids=repr,
)
def test_a_reason_is_one_short_line_and_the_room_that_is_left(
    error: Exception, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 3_210_000))
    assert reason(error, tmp_path / "a" / "file") == f"{line} (3.2 MB free there)"


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (64_000, "64.0 kB"),
        (78_400_000_000, "78.4 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_the_room_is_said_as_people_say_it(
    free: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free))
    assert reason(ValueError("no"), tmp_path) == f"no ({said} free there)"


def test_the_room_is_that_of_the_nearest_folder_that_exists(small_disk: Path) -> None:
    assert reason(ValueError("no"), small_disk / "a" / "b" / "c") == "no (65.5 kB free there)"


def test_a_room_that_cannot_be_asked_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise OSError(errno.EACCES, "no")

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    assert reason(ValueError("no"), tmp_path) == "no"


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("metrics.csv", {".metrics.csv.12.tmp"}),
        ("epoch_*.png", {".epoch_001.png.7.tmp", ".epoch_1.2.png.7.tmp"}),
        ("nothing*", set()),
    ],
)
def test_only_what_a_killed_process_left_of_these_files_is_deleted(
    pattern: str, gone: set[str], tmp_path: Path
) -> None:
    names = {
        ".metrics.csv.12.tmp",
        ".metrics.csv.old.tmp",
        ".metrics.csv.tmp",
        ".metrics.csv..tmp",
        ".metrics.csv.12.tmp2",
        ".my.metrics.csv.12.tmp",
        ".metrics.csv",
        "metrics.csv",
        "metrics.csv.12.tmp",
        ".epoch_001.png.7.tmp",
        ".epoch_1.2.png.7.tmp",
        ".tmp",
        "..tmp",
    }
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".metrics.csv.13.tmp").mkdir()  # no file of ours, and nothing to fail at
    remove_leftovers(tmp_path, pattern)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == names - gone | {".metrics.csv.13.tmp"}


def test_what_whole_file_leaves_when_it_is_killed_is_what_is_deleted(tmp_path: Path) -> None:
    with whole_file(tmp_path / "epoch_001.png") as file:
        file.write(b"half of it")
        (leftover,) = tmp_path.iterdir()
        kept = leftover.rename(tmp_path / "kept")
        leftover.write_bytes(b"")
    kept.rename(leftover)
    remove_leftovers(tmp_path, "epoch_*.png")
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_001.png"]


def test_leftovers_may_be_nowhere_or_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_leftovers(tmp_path / "nowhere", "*")
    (tmp_path / "file").touch()
    remove_leftovers(tmp_path / "file", "*")
    gone = tmp_path / ".name.1.tmp"
    monkeypatch.setattr(Path, "glob", lambda *_: iter([gone]))
    remove_leftovers(tmp_path, "*")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_home_of_the_user_takes_the_place_of_its_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("out", Path("~/a b/ü.png")) == tmp_path / "a b/ü.png"
    assert user_path("out", Path("a/~/ü.png")) == Path("a/~/ü.png")


def test_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^--out ~nosuchuser/a\.png can't be used: .*~nosuchuser"
    ):
        user_path("out", Path("~nosuchuser/a.png"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a current folder with a file, a folder, a pipe, and links to each and to nothing."""
    folder = tmp_path / "plåce with spaces"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    for target in ("file", "folder", "pipe", "nothing", "folder/nothing"):
        (folder / f"to {target.replace('/', ' ')}").symlink_to(target)
    (folder / "loop").symlink_to("other loop")
    (folder / "other loop").symlink_to("loop")
    monkeypatch.chdir(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    """Give all that lies below a folder, with what the files hold."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


FINE = [
    ("new", True),
    ("new", False),
    ("new/a b/ü/深い", True),
    ("new/a b/ü/深い", False),
    ("./folder/../new", True),
    ("folder", True),
    ("folder/new", True),
    ("folder/new", False),
    ("to folder", True),
    ("to folder/new", True),
    ("to folder/new", False),
    ("file", False),
    ("to file", False),
    (".", True),
    ("x" * 255, True),
]
NEVER = [
    ("file", True, "file is a file"),
    ("to file", True, "to file is a file"),
    ("file/new", True, "file is a file"),
    ("file/new", False, "file is a file"),
    ("file/far/new", False, "file is a file"),
    ("to file/new", False, "to file is a file"),
    ("folder", False, "folder is a folder"),
    ("to folder", False, "to folder is a folder"),
    (".", False, r"\. is a folder"),
    ("pipe", False, "pipe is no file or folder"),
    ("pipe", True, "pipe is no file or folder"),
    ("to pipe", False, "to pipe is no file or folder"),
    ("to nothing", True, "to nothing is a link to nothing"),
    ("to nothing", False, "to nothing is a link to nothing"),
    ("to nothing/new", False, "to nothing is a link to nothing"),
    ("to folder nothing/new", True, "to folder nothing is a link to nothing"),
    ("loop", True, "loop is a link to nothing"),
    ("loop", False, "loop is a link to nothing"),
    ("loop/new", False, "loop is a link to nothing"),
    ("x" * 256, True, "File name too long"),
    ("x" * 256, False, "File name too long"),
    ("x" * 250, False, "File name too long"),  # with what is added to it while it is written
    ("new/" + "x" * 256 + "/new", True, "File name too long"),
    ("new/" + "ü" * 128, False, "File name too long"),
    ("new/" * 1100 + "new", True, "File name too long"),
    ("new/" * 1100 + "new", False, "File name too long"),
    ("a\0b", True, "null"),
    ("a\0b", False, "null"),
]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("path", "folder"), FINE)
def test_a_place_that_can_be_written_is_taken_and_left_as_it_is(
    path: str, folder: bool, absolute: bool, place: Path
) -> None:
    before = contents(place)
    target = place / path if absolute else Path(path)
    require_writable("out", target, folder=folder)
    assert contents(place) == before
    write(target / "file" if folder else target, b"new")  # it was right


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("path", "folder", "why"), NEVER, ids=lambda value: ascii(value)[:30])
def test_a_place_that_cannot_be_written_is_refused_by_name(
    path: str, folder: bool, why: str, absolute: bool, place: Path
) -> None:
    if absolute and path == ".":
        why = f"{place} is a folder"
    before = contents(place)
    target = place / path if absolute else Path(path)
    allowed = f"name a {'folder' if folder else 'file'} that can be written"
    with pytest.raises(ConfigError) as caught:
        require_writable("out", target, folder=folder)
    assert str(caught.value).startswith(f"--out {target} can't be used: ")
    assert re.search(rf"{why}.*; {allowed}$", str(caught.value))
    assert contents(place) == before


@pytest.mark.parametrize(
    ("path", "folder"),
    [("", True), ("sub", True), ("new", True), ("new", False), ("a/new", False), ("old", False)],
)
def test_a_place_that_is_read_only_is_refused_by_name(
    path: str, folder: bool, read_only: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^--workdir .*read only.* can't be written; name a"):
        require_writable("workdir", read_only / path, folder=folder)


def test_a_file_that_is_read_only_is_refused_by_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asked for, because root may write to every file.
    monkeypatch.setattr(os, "access", lambda path, mode: path != Path("file") or not mode & os.W_OK)
    with pytest.raises(
        ConfigError, match=r"^--out file can't be used: file can't be written; name"
    ):
        require_writable("out", Path("file"), folder=False)


def test_arrays_are_read_back_as_they_were(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "label": np.array([1.5, -2], np.float32),
        "text": np.array("text"),
        "number": np.array(10),
    }
    write_arrays(tmp_path / "set.npz", **arrays)
    write_arrays(tmp_path / "again.npz", **arrays)
    assert (tmp_path / "set.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    with np.load(tmp_path / "set.npz", allow_pickle=False) as found:
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, strict=True)


def test_no_array_is_ever_pickled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_arrays(tmp_path / "set.npz", what=np.array([object()]))
    assert list(tmp_path.iterdir()) == []
