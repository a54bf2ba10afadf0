"""Firefox without a window, driven through WebDriver BiDi, which it speaks itself: the few commands that tests need."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp

from support.waiting import LONGEST, wait_until


def program() -> str | None:
    """Return the path of Firefox, if it is there."""
    return shutil.which("firefox-esr") or shutil.which("firefox")


class Firefox:
    """A session with one page. `complaints` are the errors on its console."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._number = loop, socket, 0
        self.complaints: list[str] = []
        self._ask("session.new", capabilities={})
        self._ask("session.subscribe", events=["log.entryAdded"])
        self._page = self._ask("browsingContext.getTree")["contexts"][0]["context"]

    def open(self, url: str) -> None:
        self._ask("browsingContext.navigate", context=self._page, url=url, wait="complete")

    def run(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        where = {"context": self._page}
        answer = self._ask("script.evaluate", expression=expression, target=where, awaitPromise=True)
        assert answer["type"] == "success", answer
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression of JavaScript is true."""
        wait_until(lambda: self.run(f"Boolean({condition})"))

    def _ask(self, method: str, **parameters: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(self._exchange(method, parameters), LONGEST))

    async def _exchange(self, method: str, parameters: dict[str, Any]) -> Any:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while (answer := json.loads((await self._socket.receive()).data)).get("id") != self._number:
            if answer.get("method") == "log.entryAdded" and answer["params"]["level"] == "error":
                self.complaints.append(answer["params"]["text"])
        assert "error" not in answer, answer
        return answer["result"]


@contextmanager
def firefox() -> Iterator[Firefox]:
    """A Firefox with a profile of its own. Needs `program`."""
    found = program()
    assert found, "there is no Firefox"
    with tempfile.TemporaryDirectory(prefix="firefox-", ignore_cleanup_errors=True) as home:
        command = [found, "--headless", "--remote-debugging-port", "0", "--profile", home]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": {**os.environ, "HOME": home}}
        process = subprocess.Popen(command, text=True, **pipes)
        loop = asyncio.new_event_loop()
        session = aiohttp.ClientSession(loop=loop)
        try:
            url = next(found[1] for line in process.stderr if (found := re.search(r"listening on (ws:\S+)", line)))
            socket = loop.run_until_complete(session.ws_connect(f"{url}/session", max_msg_size=0))
            yield Firefox(loop, socket)
        finally:
            loop.run_until_complete(session.close())
            loop.close()
            process.kill()
            process.communicate()
