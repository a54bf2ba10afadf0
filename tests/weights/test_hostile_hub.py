"""Servers that answer wrongly, on the loopback address: nothing outside the cache is written, nothing unverified stays,
and each ends in a sentence with exit code 4."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from support.fakes import COMMIT, Hub
from weights.conftest import serve
from weights.test_hub import WEIGHTS, pull

pytestmark = pytest.mark.process

TOKEN = "hf_abcdefghijklmnopqrst"


class Wrong(Hub):
    """A Hub whose repositories are each wrong in their own way, which `spells` has by the owner's name: `spell(hub,
    request, path)` answers the request, or returns None for the usual answer."""

    def __init__(self, root: Path) -> None:
        super().__init__("acme/helios", root)
        self.spells: dict = {}
        self.tokens: list[str | None] = []

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.tokens.append(request.headers.get("Authorization"))
        owner = path.removeprefix("/api/models").split("/")[1]
        self.repo = f"{owner}/helios"
        spell = self.spells.get(owner)
        if spell is None or spell(self, request, path) is None:
            super().answer(request)

    def send(self, request: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> bool:
        self._send(request, status, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return True


@pytest.fixture
def wrong(tmp_path):
    serve(tmp_path / "remote").close()
    hub = Wrong(tmp_path / "remote")
    yield hub
    hub.close()


def is_listing(path: str) -> bool:
    return path.startswith("/api/")


def listing(change):
    """A spell that changes the listing."""

    def spell(hub, request, path):
        if is_listing(path):
            info = hub._info()
            change(info)
            return hub.send(request, 200, json.dumps(info).encode())

    return spell


def on_listing(answer):
    return lambda hub, request, path: answer(hub, request) if is_listing(path) else None


def heads(**headers: str):
    """A spell that adds headers to the answer about a file."""

    def spell(hub, request, path):
        if request.command == "HEAD" and not is_listing(path):
            usual = {"ETag": f'"{"0" * 40}"', "X-Repo-Commit": COMMIT}
            changed = {name.replace("_", "-"): value for name, value in headers.items()}
            hub._send(request, 200, b"", usual | changed)
            return True

    return spell


def flipped(name: str):
    def spell(hub, request, path):
        if request.command == "GET" and path.endswith(f"/{name}"):
            body = bytearray((hub.root / name).read_bytes())
            body[-2] ^= 1
            return hub.send(request, 200, bytes(body))

    return spell


def endless(hub, request) -> bool:
    """Chunks until the other side has had enough."""
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    piece = b"[" + b"0," * 2**19
    try:
        while request.command == "GET":
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            hub.sent += len(piece)
    except OSError:
        request.close_connection = True
    return True


def first_sibling(**values):
    return lambda info: info["siblings"][0].update(values)


LISTINGS = {
    "portal": (on_listing(lambda hub, request: hub.send(request, 200, b"<html>log in</html>")), "a page for people"),
    "list": (on_listing(lambda hub, request: hub.send(request, 200, b"[]")), "JSON that lists no repository"),
    "deep": (on_listing(lambda hub, request: hub.send(request, 200, b"[" * 100_000)), "does not answer in JSON"),
    "error": (on_listing(lambda hub, request: hub.send(request, 500, b"{}")), "the Hub answered HTTP 500"),
    "many": (on_listing(lambda hub, request: hub.send(request, 429, b"{}", Retry_After="9" * 9)), "asks to wait"),
    "range": (on_listing(lambda hub, request: hub.send(request, 416, b"{}")), "the Hub answered HTTP 416"),
    "endless": (on_listing(endless), "sends an endless or too slow answer about endless/helios"),
    "circle": (
        on_listing(lambda hub, request: hub.send(request, 302, Location=request.path)),
        "could not be reached (TooManyRedirects)",
    ),
    "sha": (listing(lambda info: info.update(sha="../../../../evil")), "did not send a valid listing"),
    "shaless": (listing(lambda info: info.pop("sha")), "did not send a valid listing"),
    "siblings": (listing(lambda info: info.update(siblings=5)), "did not send a valid listing"),
    "blob": (listing(first_sibling(blobId="../../../../evil", rfilename="helios.json")), "no valid size and digest"),
    "size": (listing(first_sibling(size=-1, rfilename="helios.json")), "no valid size and digest"),
    "large": (listing(first_sibling(size=10**12, rfilename="helios.json")), "no valid size and digest"),
}

FILES = {
    "etag": (heads(ETag='"../../../../evil"'), "gives a file the digest ../../../../evil"),
    "linked": (heads(X_Linked_Etag='"../../../../evil"'), "gives a file the digest ../../../../evil"),
    "other": (heads(ETag=f'"{"f" * 40}"'), "gives a file the digest ffff"),
    "commit": (heads(X_Repo_Commit="../../../../evil"), "names an invalid commit, ../../../../evil"),
    "weak": (heads(ETag='W/"abc"'), "gives a file the digest abc"),
    "busy": (
        lambda hub, request, path: None if is_listing(path) else hub.send(request, 429, Retry_After="9" * 9),
        "asks to wait 999999999 seconds",
    ),
    "gone": (lambda hub, request, path: None if is_listing(path) else hub.send(request, 404), "HTTP 404"),
}

PULL_ALL = """
import json, sys
from helios_cli.errors import HeliosError
from helios_cli.weights import client
from helios_cli.weights.hub import resolve

for owner in json.loads(sys.argv[1]):
    try:
        resolve(f"{owner}/helios")
        told = [0, ""]
    except HeliosError as error:
        told = [error.exit_code, f"{error.message}; {error.hint}"]
    print(json.dumps(told), flush=True)
"""


@pytest.mark.parametrize("kinds", [LISTINGS, FILES], ids=["listings", "files"])
def test_answers_that_cannot_be(python, wrong, tmp_path, kinds):
    """One process runs all cases: each server's answer, and the user's message."""
    wrong.spells, wrong.sent = {owner: spell for owner, (spell, _) in kinds.items()}, 0
    done = python("-c", PULL_ALL, json.dumps(list(kinds)), HF_ENDPOINT=wrong.url, HF_TOKEN=TOKEN)
    told = done.stdout.splitlines()
    assert len(told) == len(kinds), done.stderr
    for (owner, (_, expected)), line in zip(kinds.items(), told, strict=True):
        code, message = json.loads(line)
        assert (owner, code) == (owner, 4)
        assert expected in message, owner
    assert TOKEN not in done.stdout + done.stderr
    assert wrong.sent < 100_000_000
    assert not [path for path in tmp_path.rglob("*evil*")]
    assert not list(Path(tmp_path / "hf").rglob("snapshots/*/model_index.json"))


def test_a_silent_server_is_given_up(python, wrong):
    ends = threading.Event()
    wrong.spells["silent"] = on_listing(lambda hub, request: ends.wait() and hub.send(request, 500))
    code = PULL_ALL.replace("for owner", "client.SILENT_SECONDS = 0.2\nfor owner")
    done = python("-c", code, '["silent"]', HF_ENDPOINT=wrong.url)
    ends.set()
    assert "could not be reached (ReadTimeout)" in done.stdout, done.stderr


@pytest.mark.parametrize(("setting", "granted"), [({}, 10), ({"HF_HUB_DOWNLOAD_TIMEOUT": "60"}, 60)])
def test_a_longer_wait_that_the_user_sets_counts(python, wrong, setting, granted):
    """Both for a library that would wait long, and for one that sets no limit."""
    code = (
        "from helios_cli.weights.client import connect\n"
        "for asked in (60, None):\n"
        f"    request = connect().build_request('GET', {wrong.url!r}, timeout=asked)\n"
        "    for hook in connect().event_hooks['request']:\n"
        "        hook(request)\n"
        "    print(request.extensions['timeout']['read'])\n"
    )
    done = python("-c", code, HF_ENDPOINT=wrong.url, **setting)
    assert done.stdout.split() == [str(granted)] * 2, done.stderr


@pytest.mark.parametrize("name", [WEIGHTS, "vae/config.json", "model_index.json"])
def test_a_file_that_is_not_what_was_stated_is_named_and_removed(helios, wrong, tmp_path, name):
    wrong.spells["flip"] = flipped(name)
    done = pull(helios, wrong, "flip/helios")
    assert done.returncode == 4
    assert f"flip/helios: {name} is not what the Hub states" in done.stderr
    assert "hint: run again: helios models pull flip/helios" in done.stderr
    snapshot = next((tmp_path / "hf").rglob(f"snapshots/{COMMIT}"))
    assert not (snapshot / name).exists() and not (snapshot / "model_index.json").exists()
    assert helios("models", "info", "flip/helios").returncode == 4  # it is not whole

    wrong.spells.clear()
    wrong.requests.clear()
    assert pull(helios, wrong, "flip/helios").returncode == 0
    assert {name, "model_index.json"} <= set(wrong.downloads())
    assert helios("models", "verify", "flip/helios").returncode == 0


def test_a_file_that_does_not_end_is_given_up(helios, wrong):
    def spell(hub, request, path):
        if path.endswith("/vae/config.json") and request.command == "GET":
            return endless(hub, request)

    wrong.spells["flood"], wrong.sent = spell, 0
    done = pull(helios, wrong, "flood/helios")
    assert (done.returncode, wrong.sent < 200_000_000) == (4, True)
    assert "sends far more than" in done.stderr


def test_the_token_stays_with_its_host(helios, wrong, tmp_path):
    """Files and the listing are fetched where the server says, without the token; and it is in no message."""
    other = Wrong(tmp_path / "remote")

    def redirected(hub, request, path):
        if request.command == "GET":
            return hub.send(request, 302, Location=f"{other.url}{request.path}")

    wrong.spells["away"] = redirected
    done = pull(helios, wrong, "away/helios", HF_TOKEN=TOKEN, HELIOS_DEBUG="1")
    other.close()
    assert done.returncode == 0, done.stderr
    assert f"Bearer {TOKEN}" in wrong.tokens
    assert other.tokens and not any(other.tokens)
    assert TOKEN not in done.stdout + done.stderr
    assert not [file for file in (tmp_path / "hf").rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("variable", "value", "code", "message"),
    [
        ("HF_ENDPOINT", "", 2, "HF_ENDPOINT is empty"),
        ("HF_ENDPOINT", "huggingface.co", 2, "HF_ENDPOINT is huggingface.co"),
        ("HF_ENDPOINT", "ftp://huggingface.co", 2, "HF_ENDPOINT is ftp"),
        ("HF_ENDPOINT", "http://[::1", 2, "HF_ENDPOINT is http://[::1"),
        ("HF_TOKEN", "hf_äöü", 2, "the token in HF_TOKEN has characters"),
        ("HF_TOKEN", "hf_a b", 2, "the token in HF_TOKEN has characters"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "soon", 2, "HF_HUB_DOWNLOAD_TIMEOUT cannot be read"),
        ("ALL_PROXY", "socks5://127.0.0.1:1", 3, "ALL_PROXY names a SOCKS proxy"),
        ("https_proxy", "proxy-of-ours:3128:9", 2, "HTTPS_PROXY is proxy-of-ours:3128:9"),
        ("HTTP_PROXY", "gopher://me:secret@127.0.0.1", 2, "HTTP_PROXY is gopher://127.0.0.1"),
    ],
)
def test_settings_of_the_network_are_named(helios, variable, value, code, message):
    done = helios("models", "pull", "acme/helios", **{variable: value})
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "secret" not in done.stderr and "hf_" not in done.stderr
    assert "hint: " in done.stderr


def test_settings_that_cannot_be_read_do_not_keep_from_the_model_in_the_package(helios):
    for variable, value in (("HF_HUB_DOWNLOAD_TIMEOUT", "soon"), ("HF_ENDPOINT", "")):
        done = helios("plan", "a ball", **{variable: value})
        assert done.returncode == 0, done.stderr
        assert variable in done.stderr
    assert helios("models", "info", "tiny", HF_ENDPOINT="").returncode == 0
