"""A file is replaced as a whole or not at all, and the steps of a commit are durable in the right order."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from krea_batch.jobs import StoredFile
from krea_batch.ledger.sqlite.database import open_database
from krea_batch.storage import atomic
from krea_batch.storage.atomic import commit, fsync_path, open_for_writing, replacing
from krea_batch.storage.image_file import ImageFile, commit_many
from krea_batch.testing import make_png

F_FULLFSYNC = 51  # of macOS, fcntl.h
OLD, NEW = b"the old content", b"the new content"


class RecordingOs:
    """Replaces `os` in the module: records the calls that change the disk, and raises for the one in `fail_on`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.fail_on: tuple[str, ...] | None = None
        self._paths: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str | Path, flags: int, mode: int = 0o777) -> int:
        fd = os.open(path, flags, mode)
        self._paths[fd] = Path(path).name
        return fd

    def fsync(self, fd: int) -> None:
        self._record("fsync", self._paths[fd])
        os.fsync(fd)

    def replace(self, source: Path, target: Path) -> None:
        self._record("replace", source.name, target.name)
        source.replace(target)

    def _record(self, *call: str) -> None:
        self.calls.append(call)
        if call == self.fail_on:
            raise OSError(5, "Input/output error")


@pytest.fixture
def recording_os(monkeypatch: pytest.MonkeyPatch) -> RecordingOs:
    recorder = RecordingOs()
    monkeypatch.setattr(atomic, "os", recorder)
    return recorder


@pytest.fixture
def final(tmp_path: Path) -> Path:
    """The path of a file in a directory of its own. The file does not exist."""
    directory = tmp_path / "directory"
    directory.mkdir()
    return directory / "final"


def contents(directory: Path) -> dict[str, bytes]:
    """Return the content of each file in the directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


COMMIT_CALLS = [("fsync", "part"), ("replace", "part", "final"), ("fsync", "directory")]


class TestCommit:
    @pytest.mark.parametrize("exists", [True, False])
    def test_order(self, final: Path, recording_os: RecordingOs, exists: bool) -> None:
        """The bytes are synced before the rename, and the rename is followed by a sync of the directory."""
        part = final.with_name("part")
        part.write_bytes(NEW)
        if exists:
            final.write_bytes(OLD)
        commit(part, final)
        assert recording_os.calls == COMMIT_CALLS
        assert contents(final.parent) == {"final": NEW}

    @pytest.mark.parametrize("failing", range(3))
    def test_it_stops_at_the_first_error(self, final: Path, recording_os: RecordingOs, failing: int) -> None:
        """If a step fails, its OSError is raised and no later step is done."""
        part = final.with_name("part")
        part.write_bytes(NEW)
        final.write_bytes(OLD)
        recording_os.fail_on = COMMIT_CALLS[failing]
        with pytest.raises(OSError, match="Input/output error"):
            commit(part, final)
        assert recording_os.calls == COMMIT_CALLS[: failing + 1]
        renamed = failing == 2
        assert contents(final.parent) == ({"final": NEW} if renamed else {"final": OLD, "part": NEW})

    def test_a_missing_part(self, final: Path, recording_os: RecordingOs) -> None:
        """Without a part file, the final file stays."""
        final.write_bytes(OLD)
        with pytest.raises(FileNotFoundError):
            commit(final.with_name("part"), final)
        assert recording_os.calls == []
        assert contents(final.parent) == {"final": OLD}


class TestReplacing:
    @pytest.mark.parametrize("exists", [True, False])
    def test_the_file_is_replaced_when_the_block_ends(self, final: Path, exists: bool) -> None:
        """Readers see the old file until the block ends and the new one after it. No other file stays."""
        before = {"final": OLD} if exists else {}
        if exists:
            final.write_bytes(OLD)
        with replacing(final) as file:
            file.write(NEW[:5])
            file.flush()
            assert contents(final.parent) == before | {".final.part": NEW[:5]}
            file.write(NEW[5:])
        assert contents(final.parent) == {"final": NEW}

    def test_the_new_file_is_committed_once(self, final: Path, recording_os: RecordingOs) -> None:
        """Nothing is synced or renamed before the block ends; then the part file is committed."""
        with replacing(final) as file:
            file.write(NEW)
            assert recording_os.calls == []
        assert recording_os.calls == [
            ("fsync", ".final.part"),
            ("replace", ".final.part", "final"),
            ("fsync", "directory"),
        ]

    @pytest.mark.parametrize("exists", [True, False])
    @pytest.mark.parametrize("error", [ValueError("a bug"), OSError(28, "No space left"), KeyboardInterrupt()])
    def test_an_error_in_the_block_changes_nothing(self, final: Path, exists: bool, error: BaseException) -> None:
        """If the block raises, the old file stays (or no file), and the part file is removed."""
        before = {"final": OLD} if exists else {}
        if exists:
            final.write_bytes(OLD)
        with pytest.raises(type(error)), replacing(final) as file:
            file.write(NEW)
            raise error
        assert contents(final.parent) == before

    @pytest.mark.parametrize("failing", [("fsync", ".final.part"), ("replace", ".final.part", "final")])
    def test_an_error_of_the_commit_changes_nothing(
        self, final: Path, recording_os: RecordingOs, failing: tuple[str, ...]
    ) -> None:
        """If the sync or the rename fails, the old file stays and the part file is removed."""
        final.write_bytes(OLD)
        recording_os.fail_on = failing
        with pytest.raises(OSError, match="Input/output error"), replacing(final) as file:
            file.write(NEW)
        assert contents(final.parent) == {"final": OLD}

    def test_a_part_of_a_killed_process_is_replaced(self, final: Path) -> None:
        """A longer part file that a killed process left has no influence on the new file."""
        final.with_name(".final.part").write_bytes(b"left by a killed process " * 10)
        with replacing(final) as file:
            file.write(NEW)
        assert contents(final.parent) == {"final": NEW}

    def test_a_part_of_another_process_is_not_overwritten(self, final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If a file appears at the path of the part file after the removal, the block does not start."""
        final.with_name(".final.part").write_bytes(b"foreign")
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(FileExistsError), replacing(final):
            pytest.fail("the block must not start")
        assert contents(final.parent) == {".final.part": b"foreign"}

    @pytest.mark.parametrize("exists", [True, False], ids=["to a file", "to nothing"])
    def test_a_symlink_at_the_part_path_is_not_followed(self, final: Path, tmp_path: Path, exists: bool) -> None:
        """A symbolic link at the path of the part file is removed. Its target is not written or created."""
        target = tmp_path / "target"
        if exists:
            target.write_bytes(OLD)
        final.with_name(".final.part").symlink_to(target)
        with replacing(final) as file:
            file.write(NEW)
        assert contents(final.parent) == {"final": NEW}
        assert not final.is_symlink()
        assert (target.read_bytes() if target.exists() else None) == (OLD if exists else None)

    def test_a_symlink_at_the_final_path_is_replaced(self, final: Path, tmp_path: Path) -> None:
        """A symbolic link at the final path becomes a file. Its target is not changed."""
        target = tmp_path / "target"
        target.write_bytes(OLD)
        final.symlink_to(target)
        with replacing(final) as file:
            file.write(NEW)
        assert not final.is_symlink()
        assert (final.read_bytes(), target.read_bytes()) == (NEW, OLD)

    def test_a_missing_directory(self, tmp_path: Path) -> None:
        """A directory that does not exist raises OSError before the block starts."""
        with pytest.raises(FileNotFoundError), replacing(tmp_path / "missing" / "final"):
            pytest.fail("the block must not start")


def test_open_for_writing_does_not_follow_a_symlink(tmp_path: Path) -> None:
    """Opening a symbolic link raises OSError, and its target is neither changed nor created."""
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    for flags in (0, os.O_CREAT, os.O_CREAT | os.O_TRUNC, os.O_CREAT | os.O_EXCL, os.O_APPEND):
        with pytest.raises(OSError, match=r"symbolic|File exists"):
            open_for_writing(link, flags)
    assert not target.exists()
    target.write_bytes(OLD)
    with pytest.raises(OSError, match="symbolic"):
        open_for_writing(link, os.O_TRUNC)
    assert target.read_bytes() == OLD


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed on Linux only")
def test_fsync_closes_the_file(final: Path, recording_os: RecordingOs) -> None:
    """`fsync_path` keeps no file open, also if the sync fails."""
    final.write_bytes(NEW)
    before = len(os.listdir("/proc/self/fd"))
    fsync_path(final)
    fsync_path(final.parent)
    recording_os.fail_on = ("fsync", "final")
    with pytest.raises(OSError, match="Input/output error"):
        fsync_path(final)
    assert len(os.listdir("/proc/self/fd")) == before


class TestFullSync:
    """On macOS only F_FULLFSYNC reaches the disk itself."""

    @pytest.fixture
    def full_syncs(self, monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
        """Return the list of errors of F_FULLFSYNC to come; None is a success. A system without it gets one."""
        errors: list[int | None] = []

        def full_sync(fd: int, command: int) -> int:
            assert os.fstat(fd)
            assert command == F_FULLFSYNC
            if error := errors.pop(0):
                raise OSError(error, os.strerror(error))
            return 0

        monkeypatch.setattr(fcntl, "F_FULLFSYNC", F_FULLFSYNC, raising=False)
        monkeypatch.setattr(fcntl, "fcntl", full_sync)
        return errors

    def test_it_replaces_fsync(self, final: Path, recording_os: RecordingOs, full_syncs: list[int | None]) -> None:
        """A commit syncs the file and the directory by F_FULLFSYNC, and not by fsync."""
        full_syncs += [None, None]
        with replacing(final) as file:
            file.write(NEW)
        assert full_syncs == []
        assert recording_os.calls == [("replace", ".final.part", "final")]

    @pytest.mark.parametrize("code", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY], ids=errno.errorcode.get)
    def test_a_file_system_without_it(
        self, final: Path, recording_os: RecordingOs, full_syncs: list[int | None], code: int
    ) -> None:
        """Where F_FULLFSYNC is not supported, fsync is used."""
        full_syncs += [code, code]
        with replacing(final) as file:
            file.write(NEW)
        assert recording_os.calls[0] == ("fsync", ".final.part")

    def test_an_error_of_the_disk_is_raised(
        self, final: Path, recording_os: RecordingOs, full_syncs: list[int | None]
    ) -> None:
        """If the disk fails, nothing is renamed: a later fsync might succeed although bytes are lost."""
        full_syncs.append(errno.EIO)
        with pytest.raises(OSError, match="Input/output error"), replacing(final):
            pass
        assert recording_os.calls == []

    def test_images_are_synced_by_it(self, tmp_path: Path, full_syncs: list[int | None]) -> None:
        """An image of the run directory and its name are synced by F_FULLFSYNC."""
        (tmp_path / "images").mkdir()
        full_syncs += [None, None]
        (stored,) = commit_many([(ImageFile(tmp_path, "fox", 1, job_id="fox", output=1), [make_png()])])
        assert isinstance(stored, StoredFile)
        assert full_syncs == []

    def test_the_ledger_asks_sqlite_for_it(self, tmp_path: Path) -> None:
        """SQLite uses F_FULLFSYNC for commits and checkpoints of the ledger, where there is one."""
        with closing(open_database(tmp_path / "ledger.db")) as connection:
            for pragma in ("fullfsync", "checkpoint_fullfsync"):
                assert connection.execute(f"PRAGMA {pragma}").fetchone() == (1,)


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127], ids=["ASCII", "two bytes each"])
def test_the_longest_names(tmp_path: Path, name: str) -> None:
    """A file whose name is as long as a file system allows can be replaced, and nothing else stays."""
    with replacing(tmp_path / name) as file:
        file.write(NEW)
    assert contents(tmp_path) == {name: NEW}
