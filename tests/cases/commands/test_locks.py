"""T12: one program at a time writes to an output, and the next one is told who does."""

import os
import signal

import pytest

from data.cli.commands import command
from data.cli.locks import hold, lock_path, locked
from data.io.records import RecordError


@pytest.mark.parametrize("name", ["run", "rows.jsonl", "a/b/run"])
def test_t12_the_second_is_told_who_holds_it(tmp_path, holder, name):
    output = tmp_path / name
    process = holder(output)
    with pytest.raises(RecordError) as found, locked(output):
        pass
    host = os.uname().nodename
    assert f"{output}: process {process.pid} on {host} has been writing to it since 20" in str(found.value)
    assert "(python -c" in str(found.value)


def test_t12_a_lock_ends_with_its_process_at_kill_9(tmp_path, holder):
    process = holder(tmp_path / "run")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with locked(tmp_path / "run"):
        assert lock_path(tmp_path / "run").is_file()
    assert not lock_path(tmp_path / "run").exists()


def test_t12_a_program_releases_its_lock_and_leaves_no_empty_folder(tmp_path):
    @command
    def main():
        hold(tmp_path / "a" / "run")
        hold(tmp_path / "a" / "run")  # a program may run another one on its own output
        assert lock_path(tmp_path / "a" / "run").is_file()

    main()
    main()
    assert not (tmp_path / "a").exists()


def test_t12_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    import errno
    import fcntl

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(RecordError, match="its file system cannot lock files"), locked(tmp_path / "run"):
        pass


def test_t12_other_ranks_leave_the_lock_to_the_main_one(tmp_path, holder, monkeypatch):
    holder(tmp_path / "run")
    monkeypatch.setenv("RANK", "1")

    @command
    def main():
        hold(tmp_path / "run")

    main()
