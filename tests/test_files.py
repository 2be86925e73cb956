import errno
import os
from pathlib import Path

import pytest

from cvae_jax.files import whole_file
from cvae_jax.types import UserError


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
    with pytest.raises(UserError, match=f"{path} can't be written: No space left on device"):
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
