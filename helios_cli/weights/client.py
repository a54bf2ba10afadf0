"""Connects to the Hub. Checks environment variables first.

The server may be a captive portal, a broken proxy or hostile, so its answers are limited in time and size, and checked
before they name a file.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Container
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, urlsplit

from helios_cli.errors import CheckpointError, InputError, MachineError
from helios_cli.visible import printable

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

LISTING_BYTES = 10_000_000
"""The limit for the list of a repository's files; a thousand files take 300 kB."""

LISTING_SECONDS, SILENT_SECONDS, WAIT_SECONDS = 60, 10, 60
"""The limits for the whole listing, for any answer without a byte, and for the wait that a server may request."""

WAITS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
TIMEOUTS = ("connect", "read", "write", "pool")
PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def constants() -> ModuleType:
    """Return the client's settings from the environment. InputError names a variable that cannot be read."""
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint is not None and not _is_address(endpoint):
        raise InputError(
            f"HF_ENDPOINT is {_named(endpoint)}, not the address of a server",
            hint="unset it, or write it as https://huggingface.co",
        )
    try:
        from huggingface_hub import constants
    except ValueError as error:
        names = (name for name in os.environ if name.startswith("HF_") and os.environ[name] in str(error))
        name = next(names, "HF_...")
        raise InputError(f"{name} cannot be read: {printable(error, 200)}", hint=f"unset {name}") from error
    return constants


def cache() -> Path:
    """Return the folder of the Hub cache."""
    return Path(constants().HF_HUB_CACHE)


def endpoint() -> str:
    """Return the server's address, without a password."""
    split = urlsplit(constants().ENDPOINT)
    return f"{split.scheme}://{split.netloc.rpartition('@')[2]}{split.path}"


def connect(blobs: Container[str] = ()) -> Any:
    """Make the client for all later requests, also those of `huggingface_hub`.

    `blobs` are the digests of the files to fetch, which the server must state. Raises InputError for a token or a proxy
    that cannot be used, MachineError if the proxy needs another package.
    """
    constants()
    from huggingface_hub import get_session, get_token, set_client_factory

    _require_token(get_token())
    try:
        usual = get_session()
    except Exception as error:  # it connects to nobody yet, so the proxy variables are wrong
        raise _proxy_error(error) from error
    hooks: dict[str, list[Callable[..., Any]]] = {
        "request": [*usual.event_hooks["request"], _limit_silence],
        "response": [_checker(blobs)],
    }
    kind = type(usual)
    set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=SILENT_SECONDS))
    return get_session()


def listing(repo: str, revision: str) -> dict[str, Any]:
    """Ask the Hub for the files of a repository's revision. CheckpointError if the answer is invalid, large or slow."""
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = f"{constants().ENDPOINT}/api/models/{repo}/revision/{quote(revision, safe='')}"
    ends, body = time.monotonic() + LISTING_SECONDS, bytearray()
    headers = build_hf_headers()
    with connect().stream("GET", url, params={"blobs": True}, headers=headers, timeout=SILENT_SECONDS) as answer:
        hf_raise_for_status(answer)
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > LISTING_BYTES or time.monotonic() > ends:
                raise _no_hub(f"sends an endless or too slow answer about {repo}, {len(body)} bytes so far")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        page = " (a page for people)" if body.lstrip()[:1] == b"<" else ""
        raise _no_hub(f"does not answer in JSON{page}") from error
    if not isinstance(value, dict):
        raise _no_hub("answers with JSON that lists no repository")
    return value


def _no_hub(what: str) -> CheckpointError:
    return CheckpointError(
        f"{endpoint()} {what}", hint="check for a network login page, a proxy, or HF_ENDPOINT between here and the Hub"
    )


def _is_address(text: str) -> bool:
    try:
        split = urlsplit(text)
        return split.scheme in ("http", "https") and bool(split.hostname) and (split.port or 1) > 0
    except ValueError:
        return False


def _named(text: str) -> str:
    return printable(text, 200) if text else "empty"


def _require_token(token: str | None) -> None:
    """Raise InputError for a malformed token, which no message shows."""
    if token is None or re.fullmatch(r"[!-~]+", token):
        return
    where = next((name for name in TOKENS if os.environ.get(name)), str(constants().HF_TOKEN_PATH))
    raise InputError(f"the token in {where} has characters that tokens do not have", hint=f"copy it into {where} again")


def _proxy_error(error: Exception) -> InputError | MachineError:
    """Return the error for what the client raised about the proxies of the environment."""
    settings = {name: os.environ.get(name) or os.environ.get(name.lower()) for name in PROXIES}
    name, value = next(((name, value) for name, value in settings.items() if value), ("a proxy variable", ""))
    socks = next((name for name, value in settings.items() if value and value.lower().startswith("socks")), None)
    if isinstance(error, ImportError):
        return MachineError(
            f"{socks or name} names a SOCKS proxy; the Hub's client needs the package socksio for it",
            hint="pip install socksio",
        )
    shown = re.sub(r"//[^/]*@", "//", value or "")
    return InputError(f"{name} is {_named(shown)}, not the address of a proxy", hint=f"correct or unset {name}")


def _limit_silence(request: Any) -> None:
    """Limit the wait of every request for a byte to SILENT_SECONDS, or to more where the user has set more."""
    most = max([SILENT_SECONDS, *(getattr(constants(), name) for name in WAITS if os.environ.get(name))])
    limits = request.extensions.get("timeout", {})
    waits = {what: min(limits.get(what) or most, most) for what in TIMEOUTS}
    request.extensions = {**request.extensions, "timeout": waits}


def _checker(blobs: Container[str]) -> Callable[[Any], None]:
    """Return a hook that checks the ETag and the commit of an answer, of which the client makes paths."""

    def check(answer: Any) -> None:
        headers = answer.headers
        commit, linked, own = (headers.get(name) for name in ("X-Repo-Commit", "X-Linked-Etag", "ETag"))
        if commit is not None and not COMMIT.fullmatch(commit):
            raise _no_hub(f"names an invalid commit, {printable(commit)}")
        if answer.request.method == "HEAD" and (etag := linked or own):
            name = etag.removeprefix("W/").strip('"')
            final = linked or answer.status_code == 200
            if name not in blobs if final else not re.fullmatch(r"[\w-]*", name):
                raise _no_hub(f"gives a file the digest {printable(name)}, which its listing does not have")
        wait = headers.get("Retry-After", "0")
        if answer.status_code in (429, 503) and wait.isdigit() and int(wait) > WAIT_SECONDS:
            raise CheckpointError(f"{endpoint()} asks to wait {wait} seconds", hint="try again later")

    return check
