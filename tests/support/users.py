"""Work that is done as another user: root may read and write all, so it cannot try what one may not."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from support.reruns import in_child

GROUP = 2000

needs_users = pytest.mark.skipif(os.getuid() != 0, reason="only root can be several users")


def as_user(uid: int, work: Callable[[], object], umask: int = 0o022) -> None:
    """`work` in a process of user `uid`, who is in GROUP and in no list of users; its assertions count.

    Modules must be there already: the user may not read the ones that root has.
    """

    def dropped() -> None:
        os.umask(umask)
        os.setgroups([])
        os.setgid(GROUP)
        os.setuid(uid)
        work()

    assert in_child(dropped) == 0
