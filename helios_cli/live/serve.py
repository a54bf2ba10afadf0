"""A page on which a live film is watched and steered: a small server in a thread of its own.

Pictures go to the page over a WebSocket, as the pieces of the growing film, for its Media Source; a browser that has
none plays the same pieces as HLS. The socket brings back how far the page is. Prompts come as forms. Whatever comes
from outside is bounded: connections, bodies, messages, prompts per second, pictures on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import re
import socket
import threading
import time
import warnings
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import BadContentDispositionHeader, WSCloseCode, WSMsgType, web

from helios_cli.engine.events import Event
from helios_cli.errors import HeliosError, InputError, Interrupted, MachineError
from helios_cli.film.compression import DECODING_DELAYS
from helios_cli.live.address import Address
from helios_cli.live.board import Board
from helios_cli.live.film import LiveJob, LiveSetup
from helios_cli.live.form import MAX_TEXT_BYTES, Form, fill, keep, starting_from
from helios_cli.live.lines import read_line
from helios_cli.live.media import codecs_of, has_sound, playlist
from helios_cli.recipe.problems import Problems, RecipeError
from helios_cli.units import FRAMES_PER_CHUNK

MAX_CONNECTIONS = 64
MAX_VIEWERS = 24
MAX_MESSAGE_BYTES = 64
"""A page says nothing except a number: its position."""

IDLE_SECONDS = 15
"""Time after which a connection that asks for nothing is closed."""

BODY_SECONDS = 60
STATE_SECONDS = 0.25
RELOAD_SECONDS = 3.0
"""Time in which a page that is loaded again is back."""

LEAD_SECONDS = 60
"""Film that a page gets in front of its position, where rendering is further ahead."""

BEHIND = 4
"""Pieces that a slow connection may be behind the playhead before it leaves some out."""

PLAYLIST_BACK, PROMPTS_SHOWN, PROMPT_SHOWN = 8, 20, 300
NOBODY = "nobody"
QUIET = logging.Logger("page", logging.CRITICAL + 1)
"""For the server's messages about broken requests, which would fill the terminal."""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Server:
    """A page at `address` while it is open, as a context manager. Its methods are for the thread that opens it.

    As long as nobody watches, the playhead stands still: the film waits. MachineError if the address is taken.
    """

    def __init__(self, address: Address, live: LiveJob, setup: LiveSetup) -> None:
        warnings.simplefilter("ignore", BadContentDispositionHeader)  # a broken form is answered, not reported
        self._socket = _listening(address)
        self.address = replace(address, port=self._socket.getsockname()[1])  # the one that the system chose for 0
        self._board = Board(setup.playhead.chunk_seconds, live.begun.recipe.shots if live.begun else ())
        self._page = _Page(self.address, live, setup, self._board)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, HeliosError) and not isinstance(error, Interrupted):
            self._board.fail(error.message)
        self._loop.call_soon_threadsafe(self._page.stop.set)
        self._thread.join()

    def shows(self, show: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return `show` for events that the page shows as well."""

        def both(event: Event) -> None:
            self._board.show(event)
            show(event)

        return both

    def warn(self, message: str) -> None:
        """Show a message on the page."""
        self._board.say(message)

    def wait_for_viewers(self) -> None:
        """Wait until nobody has the page open any more, or for Ctrl-C."""
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() - self._page.last_seen < RELOAD_SECONDS:
                time.sleep(0.1)

    @property
    def has_viewers(self) -> bool:
        return bool(self._page.viewers)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._page.serve(self._socket, self._ready.set))


def _listening(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address.host, address.port))
        made.listen(MAX_CONNECTIONS)
    except OSError as error:
        made.close()
        message = f"--serve: cannot listen at {address.host}:{address.port}: {error.strerror}"
        raise MachineError(message, hint="choose another port; 0 takes any that is free") from error
    return made


class _Refusal(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


@dataclass
class _Allowance:
    """So many events per second, and at most `burst` at once."""

    per_second: float
    burst: float
    _left: float = field(init=False)
    _when: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._left = self.burst

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self.burst, self._left + (now - self._when) * self.per_second)
        self._when = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(eq=False)
class _Viewer:
    """An open page at `position`; `wake` is set when there may be more for it."""

    position: float = 0.0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    messages: _Allowance = field(default_factory=lambda: _Allowance(10, 40))


class _Page:
    """The answers to requests. Everything runs in the loop of the server's thread."""

    def __init__(self, address: Address, live: LiveJob, setup: LiveSetup, board: Board) -> None:
        self._address, self._live, self._board, self._defaults = address, live, board, setup.defaults
        self._feed, self._playhead, self._lines = setup.feed, setup.playhead, setup.lines
        self._door = setup.lines.door("the page")
        self._html = files("helios_cli").joinpath("live/page.html").read_text("utf-8")
        self._headers = HEADERS | {"Content-Security-Policy": _policy(self._html)}
        self._prompts = _Allowance(2, 20)
        self._keeping = asyncio.Lock()
        self.stop = asyncio.Event()
        self.viewers: set[_Viewer] = set()
        self._left = -math.inf

    @property
    def last_seen(self) -> float:
        """The monotonic time at which somebody had the page open."""
        return time.monotonic() if self.viewers else self._left

    async def serve(self, listening: socket.socket, ready: Callable[[], object]) -> None:
        """Answer until `stop` is set."""
        loop = asyncio.get_running_loop()
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=QUIET,
            auto_decompress=False,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=1,
            shutdown_timeout=1,
        )
        await runner.setup()
        server = runner.server
        assert server is not None

        def connection() -> asyncio.Protocol:
            return server() if len(server.connections) < MAX_CONNECTIONS else _Refusal()

        listener = await loop.create_server(connection, sock=listening)
        wake = lambda: loop.call_soon_threadsafe(self._wake)  # noqa: E731 (`unlisten` needs the same one)
        self._feed.listen(wake)
        holding = asyncio.create_task(self._hold())
        ready()
        try:
            await self.stop.wait()
        finally:
            self._feed.unlisten(wake)
            holding.cancel()
            listener.close()
            await runner.cleanup()

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_TEXT_BYTES)
        root = self._address.root
        answers = {
            "": self._show_page,
            "socket": self._watch,
            "film.mp4": self._send_film,
            "recipe.toml": self._send_recipe,
            "film.m3u8": self._send_playlist,
            "init.mp4": self._send_init,
            r"{index:\d{1,9}}.m4s": self._send_piece,
        }
        for path, answer in answers.items():
            app.router.add_get(root + path, answer)
        for path, command in {"prompt": self._take_prompt, "pause": self._pause, "end": self._end}.items():
            app.router.add_post(root + path, command)
        app.on_response_prepare.append(self._add_headers)
        app.on_shutdown.append(self._say_goodbye)
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if not self._address.admits(request.path, host, origin):
            raise web.HTTPForbidden(text="The address of this page is in the terminal in which helios runs.\n")
        return await handler(request)

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self._headers)
        response.headers.pop("Server", None)

    async def _say_goodbye(self, app: web.Application) -> None:
        self._wake()

    def _wake(self) -> None:
        for viewer in self.viewers:
            viewer.wake.set()

    async def _hold(self) -> None:
        """Hold the playhead where it is while nobody watches."""
        while True:
            if self.viewers:
                self._playhead.leave(NOBODY)
            else:
                self._playhead.report(NOBODY, self._playhead.position)
            await asyncio.sleep(STATE_SECONDS)

    # The film

    async def _show_page(self, request: web.Request) -> web.Response:
        return web.Response(text=self._html, content_type="text/html")

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if len(self.viewers) >= MAX_VIEWERS:
            raise web.HTTPServiceUnavailable(text=f"{MAX_VIEWERS} pages are open already.\n")
        answer = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, heartbeat=10, compress=False)
        await answer.prepare(request)
        viewer = _Viewer()
        self.viewers.add(viewer)
        sending = asyncio.create_task(self._send_all(answer, viewer, with_media="hls" not in request.query))
        try:
            async for message in answer:
                if message.type is not WSMsgType.TEXT or not viewer.messages.take():
                    await answer.close(code=WSCloseCode.POLICY_VIOLATION)
                    break
                with contextlib.suppress(ValueError):
                    position = float(message.data)
                    if math.isfinite(position):
                        viewer.position = max(0.0, position)
                        self._playhead.report(viewer, viewer.position)
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
            self._left = time.monotonic()
            self._playhead.report(NOBODY, self._playhead.position)  # before the wall's time counts
            self.viewers.discard(viewer)
            self._playhead.leave(viewer)
        return answer

    async def _send_all(self, answer: web.WebSocketResponse, viewer: _Viewer, *, with_media: bool) -> None:
        """Send the state whenever it changes, shots, and the pieces from the playhead on."""
        feed, shots, state, index = self._feed, 0, "", -1
        has_ended = False
        with contextlib.suppress(ConnectionError):
            await answer.send_json(
                {"kind": "hello", "transition": self._defaults.transition, "seconds": self._defaults.hold}
            )
            while not answer.closed and not self.stop.is_set():
                if index < 0 and feed.init:
                    index, viewer.position = self._index_at_playhead(), self._playhead.position
                    await answer.send_json(self._about_film())
                    if with_media:
                        await answer.send_bytes(feed.init)
                for shot in self._board.shots_from(shots):
                    await answer.send_json({"kind": "shot", **shot})
                    shots = shot["number"] + 1
                if state != (state := json.dumps(self._state())):
                    await answer.send_str(state)
                while with_media and 0 <= index < min(feed.num_pieces, self._index_at(viewer.position + LEAD_SECONDS)):
                    current = self._index_at_playhead()
                    index = current if current - index > BEHIND else index
                    await answer.send_bytes((await asyncio.to_thread(feed.piece, index)).data)
                    index += 1
                if feed.is_over and not has_ended and (index == feed.num_pieces or not with_media):
                    has_ended = True
                    await answer.send_json({"kind": "end"})
                viewer.wake.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(viewer.wake.wait(), STATE_SECONDS)
            await answer.send_json(self._state())
            await answer.close(code=WSCloseCode.GOING_AWAY)

    def _index_at(self, position: float) -> int:
        return int(position / self._playhead.chunk_seconds)

    def _index_at_playhead(self) -> int:
        return max(0, min(self._index_at(self._playhead.position), self._feed.num_pieces - 1))

    def _about_film(self) -> dict[str, Any]:
        """Return what a player has to know: the codecs, the time of the first picture, and where the others are."""
        return {
            "kind": "film",
            "mime": f'video/mp4; codecs="{codecs_of(self._feed.init)}"',
            "sound": has_sound(self._feed.init),
            "begins": DECODING_DELAYS["h264"] * self._playhead.chunk_seconds / FRAMES_PER_CHUNK,
            "position": self._playhead.position,
        }

    def _state(self) -> dict[str, Any]:
        playhead, waiting, board = self._playhead, self._lines.waiting, self._board.state()
        if board["phase"] == "load" and not (waiting or self._live.first or self._live.begun):
            board["phase"] = "prompt"
        prompts = [
            {"prompt": _cut(shot.prompt), "transition": shot.transition, "seconds": shot.seconds}
            for shot in waiting[:PROMPTS_SHOWN]
        ]
        return {
            "kind": "state",
            **board,
            "fps": FRAMES_PER_CHUNK / playhead.chunk_seconds,
            "position": round(playhead.position, 2),
            "ahead": round(playhead.in_front, 1),
            "delay": round(playhead.delay, 1),
            "paused": playhead.is_paused,
            "viewers": len(self.viewers),
            "waiting": prompts,
            "more": len(waiting) - len(prompts),
        }

    # Files

    async def _send_film(self, request: web.Request) -> web.StreamResponse:
        """Send the finished film, or what there is of it."""
        feed, film = self._feed, self._live.target.path
        if self._board.is_done and film.is_file():
            return web.FileResponse(film, headers=_attachment(film))
        if not feed.init:
            raise web.HTTPNotFound(text="The film has not begun yet.\n")
        response = web.StreamResponse(headers=_attachment(film))
        response.content_type = "video/mp4"
        await response.prepare(request)
        await response.write(feed.init)
        for index in range(feed.num_pieces):
            await response.write((await asyncio.to_thread(feed.piece, index)).data)
        await response.write_eof()
        return response

    async def _send_recipe(self, request: web.Request) -> web.Response:
        recipe = self._live.recipe_file.path
        try:
            text = await asyncio.to_thread(recipe.read_bytes)
        except OSError:
            raise web.HTTPNotFound(text="The film has no prompt yet.\n") from None
        return web.Response(body=text, content_type="application/toml", headers=_attachment(recipe))

    async def _send_playlist(self, request: web.Request) -> web.Response:
        feed, chunk = self._feed, self._playhead.chunk_seconds
        if not feed.init:
            raise web.HTTPNotFound(text="The film has not begun yet.\n")
        first = max(0, self._index_at_playhead() - PLAYLIST_BACK)
        starts = range(first * FRAMES_PER_CHUNK, feed.num_frames, FRAMES_PER_CHUNK)
        lengths = [min(FRAMES_PER_CHUNK, feed.num_frames - start) * chunk / FRAMES_PER_CHUNK for start in starts]
        text = playlist(first, lengths, first * chunk, is_over=feed.is_over)
        return web.Response(text=text, content_type="application/vnd.apple.mpegurl")

    async def _send_init(self, request: web.Request) -> web.Response:
        return web.Response(body=self._feed.init, content_type="video/mp4")

    async def _send_piece(self, request: web.Request) -> web.Response:
        try:
            piece = await asyncio.to_thread(self._feed.piece, int(request.match_info["index"]))
        except IndexError:
            raise web.HTTPNotFound from None
        return web.Response(body=piece.data, content_type="video/mp4")

    # Commands

    async def _pause(self, request: web.Request) -> web.Response:
        playhead = self._playhead
        if request.query.get("on") == "0":
            playhead.resume()
        else:
            playhead.pause()
        self._wake()
        return web.json_response({"paused": playhead.is_paused})

    async def _end(self, request: web.Request) -> web.Response:
        self._lines.end()
        return web.json_response({})

    async def _say(self, form: Form) -> None:
        if not form.line:
            raise InputError("the prompt is empty")
        if form.picture is None:
            self._door.say(form.line)
        elif (shot := read_line(form.line, Problems("the prompt"))) is not None:
            async with self._keeping:
                picture = await asyncio.to_thread(keep, form.picture, self._live.target.named(".pictures"))
            self._door.put(starting_from(picture, shot))

    async def _take_prompt(self, request: web.Request) -> web.Response:
        if not self._prompts.take():
            return _refused(429, "too many prompts at once; wait a few seconds")
        if not request.content_type.startswith("multipart/form-data"):
            return _refused(415, "send the prompt as a form: curl -F prompt='[cut] a storm' ADDRESS/prompt")
        with contextlib.closing(Form()) as form:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    await fill(form, await request.multipart())
                await self._say(form)
            except RecipeError as error:
                return _refused(400, error.problems[0].message, error.problems[0].suggestion)
            except InputError as error:
                return _refused(400, error.message, error.hint)
            except OSError as error:
                return _refused(500, f"the picture cannot be kept: {error.strerror}")
            except (TimeoutError, ValueError):  # it comes too slowly, or is broken
                return _refused(400, "the form is not whole")
        self._wake()
        return web.json_response({"waiting": len(self._lines.waiting)})


def _policy(html: str) -> str:
    """Return the policy under which a browser runs nothing but the page's own script."""
    rules = ["default-src 'none'", "connect-src 'self'", "img-src 'self' blob: data:", "media-src 'self' blob:"]
    for element in ("script", "style"):
        blocks = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
        hashes = [b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks]
        rules.append(f"{element}-src " + " ".join(f"'sha256-{digest}'" for digest in hashes))
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"])


def _attachment(file: Path) -> dict[str, str]:
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name)}"}


def _refused(status: int, *sentences: str | None) -> web.Response:
    return web.json_response({"error": "; ".join(filter(None, sentences))}, status=status)


def _cut(text: str) -> str:
    return text if len(text) <= PROMPT_SHOWN else text[: PROMPT_SHOWN - 1] + "…"
