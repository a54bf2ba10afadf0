"""The English of docstrings, comments, messages and documents: a few patterns that make readers read twice."""

from __future__ import annotations

import ast
import inspect
import re
import tokenize
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from typer.main import get_command

from helios_cli.cli import app

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("helios_cli", "kernels", "tests", ".ci")
PRODUCT = ("helios_cli", "kernels")
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "helios_cli").rglob("*.md"), *(ROOT / "kernels").rglob("*.md")})

FRAGMENT = re.compile(r"(?:Of|That|Those|What|Who|Whose|Whether|How|None|Its|Else|Also|Or|And|But) |[a-z]+(?: |$)")
"""A sentence that begins like this has no verb or no subject of its own."""

NAMES = re.compile(r"(?:helios|diffusers|ffmpeg|torch|torchrun|x264|cuBLAS|oneDNN|pip|numpy) ")
"""Names that begin a sentence in lower case."""

QUAINT = re.compile(r"\b(?:meanwhile|beside|besides|told|but for|(?:is|are|was|were) (?:asked|said))\b", re.IGNORECASE)


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Yield the docstrings of modules, classes, functions and constants."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield inspect.cleandoc(text)
            case ast.stmt() | ast.ExceptHandler() | ast.match_case():
                yield from docstrings(node)


def strings(tree: ast.AST) -> Iterator[str]:
    """Yield all texts of a module, docstrings and messages too."""
    yield from (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def comments(path: Path) -> Iterator[str]:
    """Yield the comments, those on lines below each other as one."""
    with tokenize.open(path) as file:
        found = [token for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT]
    for _, block in groupby(enumerate(found), lambda numbered: numbered[1].start[0] - numbered[0]):
        yield " ".join(token.string.lstrip("# ") for _, token in block)


def helps(command) -> Iterator[str]:
    """Yield the help texts of a command, its options and its subcommands."""
    yield command.help or ""
    for parameter in command.params:
        yield getattr(parameter, "help", None) or ""
    for child in getattr(command, "commands", {}).values():
        yield from helps(child)


def quaint(text: str) -> list[str]:
    """Return the quaint words of a text, outside of code, on one line or two."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    return QUAINT.findall(" ".join(prose.split()))


def is_fragment(text: str) -> bool:
    return bool(FRAGMENT.match(text)) and not NAMES.match(text)


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_and_comments(room):
    faults = []
    for path in sorted((ROOT / room).rglob("*.py")):
        if path == Path(__file__).resolve():
            continue
        source = path.read_text()
        tree = ast.parse(source)
        texts = list(docstrings(tree))
        where = path.relative_to(ROOT)
        faults += [f"{where}: {text[:80]!r} is a fragment" for text in texts if is_fragment(text)]
        if room in PRODUCT:
            texts = list(strings(tree))
        if quaint(source.replace("#", "").replace("`", "")):
            texts += comments(path)
        faults += [f"{where}: {words} in {text[:80]!r}" for text in texts if (words := quaint(text))]
    assert not faults, "\n".join(faults)


def test_help_texts():
    texts = list(helps(get_command(app)))
    faults = [text for text in texts if re.match(r"(?:Of|That|Those|What|Whose) ", text) or quaint(text)]
    assert len(texts) > 200 and not faults, "\n".join(faults)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents(path):
    lines = [line for line in path.read_text().splitlines() if 'No "told"' not in line]
    assert quaint("\n".join(lines)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Of an .mp4.", True),
        ("What a command asks for.", True),
        ("the frames of a film", True),
        ("Return the frames of a film.", False),
        ("`size` is in pixels.", False),
        ("helios as a child process.", False),
        ("x264 writes a key frame.", False),
    ],
)
def test_fragments_are_recognised(text, expected):
    assert is_fragment(text) is expected


def test_quaint_words_are_recognised():
    assert quaint("What was told is beside it, but\n    for `told`.") == ["told", "beside", "but for"]
