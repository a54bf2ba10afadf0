"""The server of a page, as browsers and those who are none talk to it; the film is one of three encoded pieces."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import pytest
from PIL import Image

from helios_cli.engine.events import ChunkDone, FilmDone, PromptTaken
from helios_cli.errors import MachineError
from helios_cli.film.compression import Encoding
from helios_cli.film.growing import GrowingFile
from helios_cli.film.jobs import Job
from helios_cli.film.mp4 import split
from helios_cli.film.sound import Track, open_track
from helios_cli.film.target import Target
from helios_cli.live import serve
from helios_cli.live.address import Address
from helios_cli.live.board import Board
from helios_cli.live.film import LiveJob, LiveSetup, film_to_be
from helios_cli.live.form import MAX_PICTURE_BYTES
from helios_cli.live.media import codecs_of
from helios_cli.live.recipe_file import RecipeFile
from helios_cli.live.script import PromptDefaults
from helios_cli.live.serve import MAX_CONNECTIONS, MAX_VIEWERS, Server
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.schema import Shot
from helios_cli.recipe.sound import Sound
from support import sounds
from support.waiting import wait_until

FPS, PIECES = 24, (33, 33, 20)
BOUNDARY = "part"


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> list[bytes]:
    """Encoded pieces, as the writer of a film makes them."""
    target = Target.of(tmp_path_factory.mktemp("pieces") / "film.mp4")
    growing = GrowingFile(target, (64, 64), FPS, Encoding(preset="ultrafast"))
    made = []
    for number, frames in enumerate(PIECES):
        encoder = growing.encoder()
        encoder.write(np.full((frames, 64, 64, 3), 60 * number, np.uint8))
        made.append(encoder.finish(frames))
    return made


class Film:
    """A film that grows piece by piece, and its page."""

    def __init__(self, folder: Path, pieces: list[bytes], address: str = "0", track: Track | None = None) -> None:
        self.target = Target.of(folder / "film.mp4")
        self.growing = GrowingFile(self.target, (64, 64), FPS, Encoding(preset="ultrafast"))
        self.growing.begin()
        setup = LiveSetup.of(FPS, 3.0, PromptDefaults(), print)
        self.feed, self.playhead, self.lines = setup.feed, setup.playhead, setup.lines
        self.feed.begin(self.target.partial, [], self.growing.sound_pieces(track) if track else None)
        self.pieces = iter(zip(pieces, PIECES, strict=True))
        self.recipe, self.pictures = folder / "film.toml", folder / "film.pictures"
        job = Job(film_to_be(self.recipe, None), RenderOptions(output=str(self.target.path)))
        self.server = Server(Address.parse(address), LiveJob(job, RecipeFile(self.recipe, "helios render")), setup)
        self.show = self.server.shows(lambda event: None)

    @property
    def port(self) -> int:
        return self.server.address.port

    def grow(self) -> None:
        self.feed.add(self.growing.append(*next(self.pieces)))


@pytest.fixture
def film(tmp_path, pieces) -> Iterator[Film]:
    made = Film(tmp_path, pieces)
    with made.server:
        yield made
    made.feed.close()


@pytest.fixture
def film_with_sound(tmp_path, pieces) -> Iterator[Film]:
    track = open_track(Sound(sounds.write(tmp_path / "music.wav", sounds.tone(4))))
    made = Film(tmp_path, pieces, track=track)
    with made.server:
        yield made
    made.feed.close()


def ask(film: Film, method: str, path: str, body=None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """The status, the body and the headers of an answer. `body` may come in blocks."""
    connection = http.client.HTTPConnection("127.0.0.1", film.port)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def form(**fields: str | bytes) -> bytes:
    parts = b""
    for name, value in fields.items():
        file = '; filename="a"' if isinstance(value, bytes) else ""
        parts += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        parts += (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return parts + f"--{BOUNDARY}--\r\n".encode()


def send(film: Film, body, **headers: str) -> tuple[int, str]:
    """Return the status of a prompt that is sent, and the error."""
    kind = {"Content_Type": f"multipart/form-data; boundary={BOUNDARY}"}
    status, answer, _ = ask(film, "POST", "/prompt", body, **kind, **headers)
    return status, json.loads(answer).get("error", "")


def picture(path: Path, form: str = "PNG") -> bytes:
    Image.new("RGB", (80, 60), "red").save(path, form)
    return path.read_bytes()


# The page and the film


def test_the_page_runs_nothing_but_its_own_script_and_no_other_page_may_hold_it(film):
    status, page, headers = ask(film, "GET", "/")
    assert status == 200 and b"<title>helios live</title>" in page
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert all("unsafe" not in rule and "*" not in rule for rule in policy.values())
    assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer" and headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers


def test_the_page_takes_nothing_from_the_network(film):
    _, page, _ = ask(film, "GET", "/")
    addresses = [word for word in page.decode().split('"') if "//" in word and "://" in word]
    assert all("http://www.w3.org/2000/svg" in address for address in addresses)  # a name, not a place


async def watch(film: Film, *, until, path: str = "socket", say: list | None = None) -> tuple[list[dict], list[bytes]]:
    """Return what comes over the socket until `until(messages, media)`."""
    messages, media = [], []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{film.port}/{path}") as socket,
    ):
        for text in say or ():
            await socket.send_str(text)
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                media.append(message.data)
            else:
                messages.append(json.loads(message.data))
            if until(messages, media):
                break
    return messages, media


def kinds(messages: list[dict]) -> list[str]:
    return [message["kind"] for message in messages]


def test_a_page_gets_the_film_from_the_playhead_on(film, pieces):
    for _ in PIECES:
        film.grow()
    film.feed.end()
    film.playhead.report("another page", 33 / FPS + 0.1)
    messages, media = asyncio.run(watch(film, until=lambda messages, media: "end" in kinds(messages)))
    about = next(message for message in messages if message["kind"] == "film")
    assert about["position"] == round(33 / FPS + 0.1, 9) and about["begins"] == 2 / FPS and not about["sound"]
    assert b"".join(media) == split(pieces[0])[0] + film.feed.piece(1).data + film.feed.piece(2).data
    settings = pieces[0].index(b"avcC") + 4
    sequence = pieces[0][settings + 9 : settings + 12]  # the same three bytes, where a decoder reads them
    assert about["mime"] == f'video/mp4; codecs="avc1.{sequence.hex()}"'


def test_a_player_that_has_no_media_source_gets_no_media(film):
    film.grow()
    film.feed.end()
    until = lambda messages, media: "end" in kinds(messages)  # noqa: E731
    assert asyncio.run(watch(film, until=until, path="socket?hls"))[1] == []


def test_pages_are_told_shots_and_numbers(film):
    film.grow()
    film.show(PromptTaken("a <b>boat</b>", 2, "cut"))
    film.show(ChunkDone(0, None, 33, 0.5))
    film.lines.door("a test").say(b"[cut 12s] a sea")
    until = lambda messages, media: kinds(messages)[-1:] == ["state"]  # noqa: E731
    messages, _ = asyncio.run(watch(film, until=until))
    shot, state = messages[-2:]
    assert shot == {"kind": "shot", "number": 0, "start": 2.75, "prompt": "a <b>boat</b>", "transition": "cut"}
    assert (state["speed"], state["fps"], state["viewers"]) == (66, 24, 1)
    assert state["waiting"] == [{"prompt": "a sea", "transition": "cut", "seconds": 12}]


def test_a_film_that_goes_on_has_its_earlier_shots():
    board = Board(1.375, [Shot(prompt="a boat", seconds=4.125), Shot(prompt="a sea", seconds=2.75, transition="cut")])
    board.show(PromptTaken("a sea", 3, "cut"))  # of a chunk that had not become safe
    board.show(PromptTaken("a storm", 5, "switch"))
    shots = [(shot["number"], shot["start"], shot["prompt"], shot["transition"]) for shot in board.shots_from(0)]
    assert shots == [(0, 0, "a boat", "cut"), (1, 4.125, "a sea", "cut"), (2, 6.875, "a storm", "switch")]


@pytest.mark.slow
def test_the_film_waits_while_nobody_watches_and_follows_the_page_that_does(film):
    film.grow()
    film.grow()
    time.sleep(0.5)
    assert film.playhead.position == 0
    until = lambda messages, media: messages and messages[-1].get("position") == 1.25  # noqa: E731
    asyncio.run(watch(film, until=until, say=["nan", "inf", "-3", "a", "1.25"]))
    wait_until(lambda: not film.server.has_viewers)
    time.sleep(0.5)
    assert film.playhead.position == 1.25
    until = lambda messages, media: "state" in kinds(messages)  # noqa: E731
    assert asyncio.run(watch(film, until=until, say=["99999"]))
    assert film.playhead.position <= film.playhead.out


def test_the_end_waits_for_those_who_watch(film, monkeypatch):
    monkeypatch.setattr(serve, "RELOAD_SECONDS", 0.3)
    film.server.wait_for_viewers()  # nobody has
    asyncio.run(watch(film, until=lambda messages, media: True))
    film.server.wait_for_viewers()
    assert not film.server.has_viewers


def test_a_page_gets_what_it_needs_soon_and_the_rest_as_it_plays(film, monkeypatch):
    monkeypatch.setattr(serve, "LEAD_SECONDS", 1.5 * 33 / FPS)
    for _ in PIECES:
        film.grow()
    film.feed.end()
    until = lambda messages, media: kinds(messages).count("state") == 2 and len(media) >= 2  # noqa: E731
    _, media = asyncio.run(watch(film, until=until))
    assert len(media) == 2  # the header and a piece
    until = lambda messages, media: "end" in kinds(messages)  # noqa: E731
    _, media = asyncio.run(watch(film, until=until, say=["2.5"]))
    assert media[-1] == film.feed.piece(2).data


def take_hls(film: Film, folder: Path) -> Path:
    """Let the film grow to its end, and take everything that a reader of its playlist does."""
    for _ in PIECES:
        film.grow()
    film.feed.end()
    folder.mkdir()
    for name in ("film.m3u8", "init.mp4", *(f"{index}.m4s" for index in range(len(PIECES)))):
        status, body, _ = ask(film, "GET", f"/{name}")
        assert status == 200
        (folder / name).write_bytes(body)
    return folder / "film.m3u8"


def frames(path: Path) -> bytes:
    return sounds.run("-i", f"{path}", "-map", "0:v", "-f", "framemd5", "-")


def test_hls_is_the_same_film_to_ffmpeg(film, tmp_path):
    """ffmpeg's own reader of playlists finds the frames of the growing film, in the same places."""
    assert frames(take_hls(film, tmp_path / "hls")) == frames(film.target.partial)


def test_hls_has_the_sound_too(film_with_sound, tmp_path):
    playlist = take_hls(film_with_sound, tmp_path / "hls")
    assert frames(playlist) == frames(film_with_sound.target.partial)
    assert sounds.is_in_time(playlist, sounds.tone(4))


def test_a_page_is_told_of_the_sound_and_gets_it(film_with_sound, tmp_path):
    film = film_with_sound
    for _ in PIECES:
        film.grow()
    film.feed.end()
    messages, media = asyncio.run(watch(film, until=lambda messages, media: "end" in kinds(messages)))
    about = next(message for message in messages if message["kind"] == "film")
    assert about["sound"] and about["mime"].endswith(',mp4a.40.2"')
    (tmp_path / "seen.mp4").write_bytes(b"".join(media))
    assert sounds.is_in_time(tmp_path / "seen.mp4", sounds.tone(4))
    assert ask(film, "GET", "/film.mp4")[1] == b"".join(media)


def test_the_film_so_far_and_the_recipe_are_there_to_take(film):
    assert ask(film, "GET", "/film.mp4")[0] == ask(film, "GET", "/recipe.toml")[0] == 404
    film.grow()
    film.grow()
    film.recipe.write_text("version = 1\n")
    _, body, headers = ask(film, "GET", "/film.mp4")
    assert body == film.target.partial.read_bytes()
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''film.mp4"
    assert ask(film, "GET", "/recipe.toml")[1] == b"version = 1\n"
    film.target.path.write_bytes(b"finished")
    film.show(FilmDone("film.mp4", 66, 1, 1, 1, None))
    assert ask(film, "GET", "/film.mp4")[1] == b"finished"


# Prompts


@pytest.mark.parametrize(
    ("fields", "prompt", "transition", "seconds"),
    [
        ({"prompt": "a boat"}, "a boat", "blend", None),
        ({"prompt": "a boat\n at sea ", "transition": "switch", "seconds": ""}, "a boat at sea", "switch", None),
        ({"prompt": "a boat", "transition": "cut", "seconds": "2.5"}, "a boat", "cut", 2.5),
        ({"prompt": "[cut 12s] a boat", "transition": "blend"}, "a boat", "cut", 12),
    ],
)
def test_a_form_is_a_line(film, fields, prompt, transition, seconds):
    assert send(film, form(**fields)) == (200, "")
    assert [(shot.prompt, shot.transition, shot.seconds) for shot in film.lines.waiting] == [
        (prompt, transition, seconds)
    ]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (form(prompt=" "), "empty"),
        (form(), "empty"),
        (form(prompt="[cutt] a"), "neither a length nor a transition"),
        (form(prompt="a", transition="cut] [x"), "neither"),
        (form(prompt="a", seconds="-1"), "not a time"),
        (form(prompt="a" * 20_001), "20,001"),
        (form(prompt="a" * 100_000), "larger than"),
        (form(prompt="a \x1b[2J"), "control character"),
        (form(prompt=b"\xff"), "not whole"),
        (form(**{f"a{number}": "" for number in range(9)}), "more than 8 fields"),
        (form(prompt="a")[:-20], "not whole"),
        (b"", "not whole"),
        (b"nonsense", "not whole"),
    ],
    ids=range(13),
)
def test_a_form_that_is_no_prompt_says_why(film, body, says):
    status, error = send(film, body)
    assert status == 400 and says in error
    assert film.lines.waiting == ()


def test_a_form_in_another_form_is_refused(film):
    assert ask(film, "POST", "/prompt", "prompt=a", Content_Type="application/x-www-form-urlencoded")[0] == 415
    assert ask(film, "POST", "/prompt", "[" * 5000, Content_Type="application/json")[0] == 415
    assert film.lines.waiting == ()


def test_a_picture_is_kept_next_to_the_film_and_begins_a_new_scene(film, tmp_path):
    png, jpeg = picture(tmp_path / "a.png"), picture(tmp_path / "a.jpg", "JPEG")
    assert send(film, form(prompt="a sea", transition="blend", picture=png)) == (200, "")
    assert send(film, form(prompt="a sea", picture=png)) == send(film, form(prompt="b", picture=jpeg)) == (200, "")
    kept = sorted(film.pictures.iterdir())
    assert sorted(path.suffix for path in kept) == [".jpeg", ".png"]
    assert sorted(path.read_bytes() for path in kept) == sorted([png, jpeg])
    first = film.lines.waiting[0]
    assert first.transition == "cut" and Path(first.image).read_bytes() == png


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"no picture", "not a picture"),
        (b"", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "picture"),
        (b"\0" * (MAX_PICTURE_BYTES + 1), "larger than"),
    ],
    ids=range(5),
)
def test_what_is_no_picture_is_refused_and_leaves_nothing(film, data, says):
    status, error = send(film, form(prompt="a", picture=data))
    assert status == 400 and says in error and str(film.pictures) not in error
    assert film.lines.waiting == ()
    assert not film.pictures.exists() or not list(film.pictures.iterdir())


def test_pause_and_end(film):
    assert json.loads(ask(film, "POST", "/pause?on=1")[1]) == {"paused": True}
    assert film.playhead.is_paused
    assert json.loads(ask(film, "POST", "/pause?on=0")[1]) == {"paused": False}
    assert film.lines.are_open
    ask(film, "POST", "/end")
    assert not film.lines.are_open


# Those who mean no good


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ],
    ids=str,
)
def test_other_origins_are_refused(film, headers):
    film.grow()
    socket = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "a" * 22 + "==",
    }
    for method, path, more in [
        *(("POST", "/prompt", {}), ("POST", "/pause", {}), ("POST", "/end", {}), ("GET", "/socket", socket)),
        *(("GET", path, {}) for path in ("/", "/film.mp4", "/0.m4s", "/nothing")),
    ]:
        assert ask(film, method, path, **headers, **more)[0] == 403
    assert film.lines.waiting == () and film.lines.are_open and not film.playhead.is_paused


def test_without_the_token_there_is_nothing(tmp_path, pieces):
    film = Film(tmp_path, pieces, "0.0.0.0:0")
    film.grow()
    with film.server:
        root = urlsplit(film.server.address.url).path
        assert len(root) > 20
        for path in ("/", "/film.mp4", "/socket", "/prompt", root[:-2] + "/", root.upper(), f"/x{root}"):
            assert ask(film, "GET", path)[0] == 403
        assert ask(film, "GET", root)[0] == ask(film, "GET", f"{root}film.mp4")[0] == 200
        assert ask(film, "GET", root, Host="studio.example:8000")[0] == 200
    film.feed.close()


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/film.toml", "//etc/passwd", "/film.mp4/../film.toml"),
        *(
            "/film.toml",
            "/film.partial.mp4",
            "/-1.m4s",
            "/0x1.m4s",
            "/99999999999999999999.m4s",
            "/7.m4s",
            "/\0",
            "/%00",
        ),
        *("/live/page.html", "/prompt", "*", "/" + "a" * 5000, "/" + "a/" * 20000),
    ],
    ids=range(18),
)
def test_paths_lead_nowhere_else(film, path):
    film.grow()
    film.recipe.write_text("secret")
    with socket.create_connection(("127.0.0.1", film.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.split(b" ")[1][:1] == b"4" and b"secret" not in answer and b"root:" not in answer


@pytest.mark.slow
def test_a_body_without_end_is_not_read_to_its_end(film):
    def endless() -> Iterator[bytes]:
        yield form(prompt="a").rpartition(b"\r\n--")[0]
        for _ in range(10_000):  # ten gigabytes
            yield b"a" * (1 << 20)

    with pytest.raises(OSError):  # the connection is closed in the middle
        send(film, endless())
    assert film.lines.waiting == ()


def test_a_compressed_body_is_not_unpacked(film):
    assert send(film, form(prompt="a"), Content_Encoding="gzip")[0] in (200, 400)
    assert send(film, b"\x1f\x8b" + b"\0" * 1000, Content_Encoding="gzip")[0] == 400


def test_a_flood_of_prompts_is_let_in_slowly(film):
    answers = [send(film, form(prompt="a"))[0] for _ in range(40)]
    assert answers[:20] == [200] * 20 and answers.count(429) > 10
    assert len(film.lines.waiting) == answers.count(200)


def test_a_flood_of_connections_ends_at_the_limit(film):
    held = [socket.create_connection(("127.0.0.1", film.port)) for _ in range(MAX_CONNECTIONS)]
    for one in held:
        one.sendall(b"GET / HTTP/1.1\r\n")  # and no more
    wait_until(lambda: _is_closed(film.port))
    for one in held:
        one.close()
    wait_until(lambda: not _is_closed(film.port))
    assert ask(film, "GET", "/")[0] == 200


@pytest.mark.parametrize("begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: "], ids=range(3))
def test_a_connection_that_asks_for_nothing_is_closed(begun, tmp_path, pieces, monkeypatch):
    monkeypatch.setattr(serve, "IDLE_SECONDS", 0.2)
    film = Film(tmp_path, pieces)
    with film.server, socket.create_connection(("127.0.0.1", film.port)) as connection:
        connection.sendall(begun)
        assert connection.recv(1) == b""
    film.feed.close()


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"GET / HTTP/1.1\r\n", b"X-A: a\r\n"),
        (
            b"POST /prompt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n"
            b"Content-Type: multipart/form-data; boundary=part\r\n\r\n--part\r\n",
            b"a",
        ),
    ],
    ids=["headers", "body"],
)
def test_what_comes_too_slowly_is_ended(begun, more, tmp_path, pieces, monkeypatch):
    """Something always comes, and never the end of it."""
    monkeypatch.setattr(serve, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(serve, "BODY_SECONDS", 0.3)
    film = Film(tmp_path, pieces)
    with film.server, socket.create_connection(("127.0.0.1", film.port)) as connection:
        connection.sendall(begun)
        with pytest.raises(OSError):
            for _ in range(2000):
                connection.sendall(more)
                time.sleep(0.01)
    film.feed.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(50_000)),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 10_000_000,
        b"GET /" + b"a" * 10_000_000,
        b"POST /pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    ],
    ids=["headers", "header", "line", "two-lengths", "no-length", "two-hosts"],
)
def test_what_is_no_request_is_closed(film, data):
    with socket.create_connection(("127.0.0.1", film.port)) as connection:
        answer = b""
        with contextlib.suppress(OSError):  # closed in the middle
            connection.sendall(data)
            while block := connection.recv(1 << 16):
                answer += block
    assert answer.split(b" ")[1:2] in ([], [b"400"])
    assert not film.playhead.is_paused and ask(film, "GET", "/")[0] == 200


HANDSHAKE = (
    b"GET /socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YWFhYWFhYWFhYWFhYWFhYQ==\r\n\r\n"
)
MASK = bytes(4)


@pytest.mark.parametrize(
    "frames",
    [
        b"\x81\xff" + (1 << 40).to_bytes(8) + MASK + b"1",
        b"\x81\xff" + (2**64 - 1).to_bytes(8) + MASK + b"1",
        b"\xc1\x81" + MASK + b"1",
        b"\x85\x81" + MASK + b"1",
        b"\x80\x81" + MASK + b"1",
        b"\x81\x82" + MASK + b"\xff\xfe",
        b"\x89\xfe\x00\x7e" + MASK + bytes(126),
        b"\x01\x81" + MASK + b"1" + 100 * (b"\x00\x81" + MASK + b"1"),
    ],
    ids=["terabyte", "longest", "compressed", "unknown", "no-beginning", "no-text", "ping", "pieces"],
)
def test_frames_that_no_page_sends_end_the_connection(film, frames):
    with socket.create_connection(("127.0.0.1", film.port)) as connection:
        connection.sendall(HANDSHAKE)
        assert connection.recv(12) == b"HTTP/1.1 101"
        connection.sendall(frames)
        with contextlib.suppress(ConnectionError):
            while connection.recv(1 << 16):
                pass
    wait_until(lambda: not film.server.has_viewers)


@pytest.mark.slow
def test_who_reads_no_answers_is_not_read(film):
    """Pings are answered; those of one who takes no answers wait with him."""
    pings = 1000 * (b"\x89\xfd" + MASK + bytes(125))
    with socket.create_connection(("127.0.0.1", film.port)) as connection:
        connection.sendall(HANDSHAKE)
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            for _ in range(1000):  # 131 MB
                connection.sendall(pings)
        assert ask(film, "GET", "/")[0] == 200


def _is_closed(port: int) -> bool:
    """Return whether a new connection is closed at once."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(0.2)
        try:
            return connection.recv(1) == b""
        except TimeoutError:
            return False


@pytest.mark.parametrize(
    "messages", [["1"] * 500, ["1" * 1000], [b"\0"], ["[" * 60, *["1"] * 500]], ids=["flood", "long", "bytes", "odd"]
)
def test_a_page_that_says_too_much_is_closed(film, messages):
    async def talk() -> int | None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{film.port}/socket") as socket,
        ):
            for message in messages:
                await (socket.send_bytes(message) if isinstance(message, bytes) else socket.send_str(message))
            async for _ in socket:
                pass
            return socket.close_code

    assert asyncio.run(talk()) in (aiohttp.WSCloseCode.POLICY_VIOLATION, aiohttp.WSCloseCode.MESSAGE_TOO_BIG)


def test_pages_have_a_limit_too(film):
    async def open_all() -> int:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            url = f"http://127.0.0.1:{film.port}/socket"
            pages = [await session.ws_connect(url) for _ in range(MAX_VIEWERS)]
            try:
                await session.ws_connect(url)
            except aiohttp.WSServerHandshakeError as error:
                return error.status
            finally:
                for page in pages:
                    await page.close()
        return 101

    assert asyncio.run(open_all()) == 503


def test_a_port_that_is_taken_is_an_error(film, tmp_path, pieces):
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(MachineError) as caught:
        Film(other, pieces, str(film.port))
    assert f":{film.port}" in caught.value.message


def test_the_codecs_of_another_film_are_an_error():
    with pytest.raises(ValueError):
        codecs_of(b"")
