import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cvae_jax.errors import ConfigError, UserError
from cvae_jax.runtime import files


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 kB in memory; only root may."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def write(path: Path, content: bytes, error: BaseException | None = None) -> None:
    with files.whole_file(path) as file:
        file.write(content)
        file.flush()
        if error is not None:
            raise error


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_gets_its_folders_and_replaces_the_old_one_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write(path, b"the old one, which is longer")
    with files.whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"the old one, which is longer"
    assert contents(path.parent) == {"file": b"new"}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), BrokenPipeError()])
def test_a_writer_that_fails_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(type(error)):
        write(tmp_path / "file", b"half of the n", error)
    assert contents(tmp_path) == {"file": b"old"}


def test_a_full_disk_is_an_error_with_path_and_space(small_disk: Path) -> None:
    (small_disk / "file").write_bytes(b"old")
    expected = r"small disk/file can't be written: No space left on device \(0\.1 MB free there\)$"
    with pytest.raises(UserError, match=expected):
        write(small_disk / "file", bytes(100_000))
    assert contents(small_disk) == {"file": b"old"}


@pytest.mark.parametrize("place", ["file/far/below", "folder", "x" * 300])
def test_a_place_that_cannot_be_written_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path / place} can't be written: "):
        write(tmp_path / place, b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_the_umask_applies_and_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    before = os.umask(0o027)
    try:
        write(tmp_path / "link", b"new")
    finally:
        os.umask(before)
    assert contents(tmp_path) == {"target": b"old", "link": b"new"}
    assert (tmp_path / "link").lstat().st_mode & 0o777 == 0o640


def test_content_and_then_name_are_on_the_disk_when_the_file_counts_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, (tmp_path / "file").exists()))
        if (tmp_path / "file").exists():
            raise OSError(errno.EINVAL, "some file systems can't sync a folder")

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "file", b"content")
    inode = (tmp_path / "file").stat().st_ino
    assert synced == [(inode, False), (tmp_path.stat().st_ino, True)]


def test_a_tree_is_synced_with_all_its_files_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    files.sync_tree(tmp_path)
    assert synced == {path.stat().st_ino for path in [tmp_path, *tmp_path.rglob("*")]}


def test_a_reason_is_one_short_line() -> None:
    assert files.reason(OSError(errno.ENOSPC, "No space left", "a file")) == "No space left"
    assert files.reason(ValueError("\n\n  what was wrong \nmore\nof it")) == "what was wrong"
    assert files.reason(ValueError(" \n ")) == "ValueError"
    assert files.reason(RuntimeError("x" * 9000)) == "x" * 300


def test_only_leftovers_of_these_files_are_deleted(tmp_path: Path) -> None:
    gone = {".epoch_001.png.7.tmp", ".epoch_1.2.png.12.tmp"}
    kept = {".metrics.csv.12.tmp", ".epoch_1.png.old.tmp", ".epoch_1.png.tmp", "epoch_1.png.7.tmp"}
    for name in gone | kept:
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path, "epoch_*.png")
    files.remove_leftovers(tmp_path / "nowhere", "*")
    assert contents(tmp_path).keys() == kept


KILLED = """
import os, pathlib, sys
from cvae_jax.runtime.files import whole_file
with whole_file(pathlib.Path(sys.argv[1])):
    os._exit(0)
"""


def test_the_leftover_of_a_killed_process_is_deleted(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "epoch_001.png"], check=True)
    assert len(contents(tmp_path)) == 1
    files.remove_leftovers(tmp_path, "epoch_*.png")
    assert contents(tmp_path) == {}


def test_the_home_folder_replaces_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.user_path("out", Path("~/a b/ü.png")) == tmp_path / "a b/ü.png"
    assert files.user_path("out", Path("a/~/ü.png")) == Path("a/~/ü.png")


@pytest.mark.parametrize("path", ["~nosuchuser/a", os.fsdecode(b"runs/\xff/a")])
def test_a_path_that_can_never_work_is_refused_by_name(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        files.user_path("workdir", Path(path))
    assert str(caught.value).startswith(f"--workdir {path} can't be used: ")


def test_arrays_are_read_back_as_they_were_and_never_pickled(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "label": np.array([1.5, -2], np.float32),
        "text": np.array("text"),
    }
    files.write_arrays(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        files.write_arrays(tmp_path / "set.npz", what=np.array([object()]))
    with np.load(tmp_path / "set.npz", allow_pickle=False) as found:
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
