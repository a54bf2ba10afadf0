"""Addresses of a page: what the flag may say, and which requests are let in."""

from __future__ import annotations

import pytest

from helios_cli.errors import InputError
from helios_cli.live.address import Address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("8000", "127.0.0.1", 8000),
        ("0", "127.0.0.1", 0),
        ("localhost:8000", "localhost", 8000),
        ("127.0.0.2:1", "127.0.0.2", 1),
        ("[::1]:8000", "::1", 8000),
    ],
)
def test_this_machine_alone_needs_no_token(text, host, port):
    address = Address.parse(text)
    assert (address.host, address.port, address.token, address.root) == (host, port, "", "/")


@pytest.mark.parametrize("text", ["0.0.0.0:8000", "[::]:8000", "studio.example:8000", "192.168.1.5:8000"])
def test_other_machines_need_a_token_which_nobody_guesses(text):
    one, other = Address.parse(text), Address.parse(text)
    assert len(one.token) >= 22 and one.token != other.token
    assert one.url.startswith("http://") and one.url.endswith(f":8000/{one.token}/")
    assert "0.0.0.0" not in one.url and "[::]" not in one.url


@pytest.mark.parametrize(
    "text",
    ["", "eight", ":8000", "a b:80", "host:", "65536", "8000/x", "http://host:80", "::1:80", "u@h:80", "-1", "١"],
)
def test_what_is_no_address_says_what_is(text):
    with pytest.raises(InputError) as caught:
        Address.parse(text)
    assert "8000" in caught.value.hint


HERE = Address("127.0.0.1", 8000)
THERE = Address("0.0.0.0", 8000, "secret")


@pytest.mark.parametrize(
    ("address", "path", "host", "origin", "admitted"),
    [
        (HERE, "/", "127.0.0.1:8000", None, True),
        (HERE, "/prompt", "localhost:8000", "http://localhost:8000", True),
        (HERE, "/prompt", "[::1]:8000", "http://[::1]:8000", True),
        (HERE, "/", "localhost:9000", None, True),  # through ssh -L
        (HERE, "/prompt", "127.0.0.1:8000", "http://evil.example", False),
        (HERE, "/prompt", "127.0.0.1:8000", "http://127.0.0.1:9000", False),  # another page on this machine
        (HERE, "/prompt", "127.0.0.1:8000", "null", False),
        (HERE, "/prompt", "127.0.0.1:8000", "", False),
        (HERE, "/", "evil.example:8000", None, False),  # a name that points here
        (HERE, "/", "127.0.0.1.evil.example", None, False),
        (HERE, "/", "localhost.evil.example", None, False),
        (HERE, "/", "", None, False),
        (HERE, "/", "[", None, False),
        (THERE, "/secret/", "studio:8000", None, True),
        (THERE, "/secret/prompt", "studio:8000", "http://studio:8000", True),
        (THERE, "/secret/prompt", "studio:8000", "https://studio:8000", True),  # a proxy with a certificate
        (THERE, "/secret/prompt", "studio:8000", "http://evil.example", False),
        (THERE, "/", "studio:8000", None, False),
        (THERE, "/prompt", "127.0.0.1:8000", None, False),
        (THERE, "/Secret/", "studio:8000", None, False),
        (THERE, "/sécret/", "studio:8000", None, False),
        (THERE, "//secret/", "studio:8000", None, False),
    ],
)
def test_who_is_let_in(address, path, host, origin, admitted):
    assert address.admits(path, host, origin) == admitted
