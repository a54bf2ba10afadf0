"""A browser without a window, driven through its WebDriver: the few commands of that protocol that tests need."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.waiting import wait_until

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element's name in the protocol."""

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"),
)


def programs() -> tuple[str, str] | None:
    """Return the paths of Chromium and its driver, if both are there."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """A session of a driver at `url`."""

    def __init__(self, url: str, browser: str, folder: Path, *flags: str) -> None:
        self._url = url
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        arguments = [*FLAGS, f"--user-data-dir={folder / 'profile'}", *flags]
        preferences = {"download.default_directory": str(self.downloads), "download.prompt_for_download": False}
        chrome = {"binary": browser, "args": arguments, "prefs": preferences}
        logs = {"goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._ask(
            "POST", "/session", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": chrome, **logs}}}
        )
        self._url += f"/session/{answer['sessionId']}"

    def _ask(self, method: str, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what the body of a function of JavaScript returns, which is waited for."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": arguments})

    def wait(self, condition: str) -> None:
        """Wait until an expression of JavaScript is true."""
        wait_until(lambda: self.run(f"return Boolean({condition})"))

    def find(self, selector: str) -> str:
        return self._ask("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def type(self, selector: str, text: str) -> None:
        """Type as a user does; for an input of files, `text` is a path. Enter is `\\ue007`."""
        self._ask("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self._ask("POST", f"/element/{self.find(selector)}/click", {})

    def text(self, selector: str) -> str:
        return self._ask("GET", f"/element/{self.find(selector)}/text")

    def label(self, selector: str) -> str:
        """The name that a screen reader says."""
        return self._ask("GET", f"/element/{self.find(selector)}/computedlabel")

    def accept(self) -> None:
        """Say yes to the question that the page asks."""
        self._ask("POST", "/alert/accept", {})

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def picture(self) -> bytes:
        """A PNG of the page."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def complaints(self) -> list[str]:
        """The errors and warnings on its console since the last call."""
        log = self._ask("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]

    def close(self) -> None:
        self._ask("DELETE", "")


@contextmanager
def browser(*flags: str) -> Iterator[Browser]:
    """A browser with a profile of its own. Needs `programs`."""
    found = programs()
    assert found, "there is no browser"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        driver = subprocess.Popen([found[1], f"--port={port}"], **output, start_new_session=True)
        try:
            wait_until(lambda: _answers(port))
            one = Browser(f"http://127.0.0.1:{port}", found[0], Path(folder), *flags)
            try:
                yield one
            finally:
                one.close()
        finally:
            driver.terminate()
            driver.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status") as answer:
            return json.load(answer)["value"]["ready"]
    except OSError:
        time.sleep(0.05)
        return False
