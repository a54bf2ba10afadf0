"""Files are there whole or not at all, with real files and real processes."""

import errno
import multiprocessing
import os
import stat

import pytest

from helios_cli.files import replacing, sync, turns
from support.users import as_user, needs_users

COUNTS = 60


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / ("n" * 250 + ".json")  # the temporary file next to it needs a name too
    path.write_text("old")
    with replacing(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_an_error_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "film.json"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as new:
        new.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["film.json"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_modes_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "film.json") as new:
            new.write_text("{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "film.json").stat().st_mode) == mode


def test_a_link_is_not_followed(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "film.json"
    victim.write_text("mine")
    link.symlink_to(victim)
    with replacing(link) as new:
        new.write_text("new")
    assert victim.read_text() == "mine" and link.read_text() == "new" and not link.is_symlink()


def test_a_durable_file_is_on_disk_before_it_has_its_name_and_its_name_after(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("name"), replace(*paths)))
    with replacing(tmp_path / "film.json", durable=True) as new:
        new.write_text("{}")
    assert steps == ["file", "name", "folder"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_is_left_to_a_file_system_that_cannot_sync_it(tmp_path, monkeypatch, code):
    """Some file systems, such as gocryptfs and network ones, cannot sync a folder. A file that does not reach the
    disk is an error anywhere."""
    fsync = os.fsync

    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, "")
        fsync(descriptor)

    def nothing(descriptor):
        raise OSError(code, "")

    monkeypatch.setattr(os, "fsync", only_files)
    with replacing(tmp_path / "film.json", durable=True) as new:
        new.write_text("{}")
    assert os.listdir(tmp_path) == ["film.json"]
    monkeypatch.setattr(os, "fsync", nothing)
    with pytest.raises(OSError):
        sync(tmp_path / "film.json")


def _count(path):
    for _ in range(COUNTS):
        with turns(path.parent):
            number = int(path.read_text())
            with replacing(path) as new:
                new.write_text(str(number + 1))


def test_processes_take_turns(tmp_path):
    path = tmp_path / "number"
    path.write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_count, args=(path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert path.read_text() == str(3 * COUNTS)


@needs_users
def test_a_folder_that_may_only_be_written_to_is_written_to(shared):
    shared.chmod(0o333)

    def work() -> None:
        with replacing(shared / "film.json", durable=True) as new:
            new.write_text("{}")
        (shared / "closed").write_text("mine")
        os.chmod(shared / "closed", 0)
        with pytest.raises(PermissionError):
            sync(shared / "closed")

    as_user(54321, work)
    assert (shared / "film.json").read_text() == "{}"
