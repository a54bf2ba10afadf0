"""Reads a checkpoint's `tokenizer.json`, which is a small program that may be hostile.

Only components whose work is bounded by the length of the text are accepted: those of the published tokenizer, of ours
and of similar ones. A regular expression may repeat one character or class once, so that it does not backtrack
exponentially; a replacement may not lengthen the text.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_cli.errors import CheckpointError
from helios_cli.units import MAX_TEXT_TOKENS
from helios_cli.weights.files import read_json, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENIZER_BYTES = 32 * 2**20
"""The limit for the file; the published one has 17 MB."""

MODELS = frozenset({"Unigram", "WordLevel", "BPE", "WordPiece"})

STEPS = {
    "normalizer": frozenset({"NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Strip", "StripAccents", "Replace"})
    | {"Precompiled", "Prepend", "BertNormalizer", "ByteLevel"},
    "pre_tokenizer": frozenset({"Split", "Metaspace", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits"})
    | {"BertPreTokenizer", "ByteLevel", "CharDelimiterSplit"},
    "post_processor": frozenset({"TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel"}),
}
"""The accepted components by place, which has one or a `Sequence` of them."""

MEMBERS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors"}

MAX_STEPS = 16
MAX_ENTRY = 64
"""The most bytes that a character may be normalized to; NFKC makes up to 33."""

_ESCAPED = re.compile(r"\\[pP]\{\w+\}|\\.", re.DOTALL)


def read_tokenizer(file: Path) -> Tokenizer:
    """Read a tokenizer, without padding and truncation. CheckpointError names what is damaged or not accepted."""
    from tokenizers import Tokenizer

    description = {**check_tokenizer(file), "truncation": None, "padding": None, "decoder": None}
    with _explained(str(file)):
        return Tokenizer.from_str(json.dumps(description))


def check_tokenizer(file: Path, most: int = MAX_TOKENIZER_BYTES) -> dict[str, Any]:
    """Read and check a tokenizer's file of at most `most` bytes, without running it. CheckpointError if refused."""
    description = read_json(file, most)
    if problem := next(_problems(description), None):
        raise CheckpointError(f"{file}: {problem}", hint="use the tokenizer.json of the published model")
    return description


def tokens_of(text: str, tokenizer: Tokenizer, vocabulary: int) -> tuple[list[int], str]:
    """Return the token ids of a prompt, at most 512 with the end token, and the end of the text that did not fit.

    Raises CheckpointError for a token beyond the `vocabulary` of the text encoder.
    """
    with _explained(f"the model's tokenizer.json fails on {shown(text)}"):
        tokenizer.no_truncation()
        encoding = tokenizer.encode(text)
        ids, lost = encoding.ids, ""
        if len(ids) > MAX_TEXT_TOKENS:
            lost = text[encoding.offsets[MAX_TEXT_TOKENS - 1][0] :]
            tokenizer.enable_truncation(MAX_TEXT_TOKENS)  # keeps the end token
            ids = tokenizer.encode(text).ids
    if not ids or max(ids) >= vocabulary:
        what = f"token {max(ids)}" if ids else "no token"
        raise CheckpointError(f"the tokenizer makes {what} of {shown(text)}; the text encoder has {vocabulary} tokens")
    return ids, lost


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn errors of the library into a CheckpointError: plain `Exception`s, and for a panic in Rust a BaseException of
    a type that it does not export."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{where}: {shown(str(error))}") from error


def _problems(description: dict[str, Any]) -> Iterator[str]:
    model = description.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") not in MODELS:
        yield f"`model` is not one of {', '.join(sorted(MODELS))}"
    for place, accepted in STEPS.items():
        steps = list(_steps(description.get(place), MEMBERS[place]))
        if len(steps) > MAX_STEPS:
            yield f"`{place}` has more than {MAX_STEPS} steps"
        for step in steps:
            kind = step.get("type") if isinstance(step, dict) else step
            if not isinstance(kind, str) or kind not in accepted:
                yield f"`{place}` cannot be {shown(kind)}"
            elif not _is_bounded(step):
                yield f"`{place}`: this {kind} could take unbounded time: {shown(step.get('pattern', step))}"


def _steps(step: Any, members: str) -> Iterator[Any]:
    if isinstance(step, dict) and step.get("type") == "Sequence" and isinstance(step.get(members), list):
        for member in step[members][: MAX_STEPS + 1]:
            yield from _steps(member, members)
    elif step is not None:
        yield step


def _is_bounded(step: dict[str, Any]) -> bool:
    pattern = step.get("pattern")
    if isinstance(pattern, dict) and "Regex" in pattern and not _is_plain(pattern["Regex"]):
        return False
    match step["type"]:
        case "Replace" | "Prepend":
            added = step.get("content", step.get("prepend"))
            return isinstance(added, str) and len(added) <= 1
        case "Precompiled":
            return _are_short(step.get("precompiled_charsmap"))
    return True


def _is_plain(pattern: Any) -> bool:
    """Return whether a regular expression has at most one repetition, which is not of a group, no lookaround and no
    backreference."""
    if not isinstance(pattern, str) or re.search(r"\\[1-9kg]", pattern) or re.search(r"\(\?(?!:)", pattern):
        return False
    bare = _ESCAPED.sub("x", pattern.replace("(?:", "("))
    repeats = re.findall(r".[*+?{]", bare, re.DOTALL)
    counts = re.findall(r"\{([^}]*)", bare)
    return len(repeats) <= 1 and all(one[0] != ")" for one in repeats) and all(len(count) <= 4 for count in counts)


def _are_short(charsmap: Any) -> bool:
    """Return whether all replacements in a SentencePiece map (size of a tree, tree, zero-ended texts) are short."""
    try:
        raw = base64.b64decode(charsmap, validate=True)
    except (TypeError, ValueError, binascii.Error):
        return False
    tree = int.from_bytes(raw[:4], "little")
    is_map = 0 < tree < len(raw) - 4 and tree % 4 == 0
    return is_map and all(len(text) <= MAX_ENTRY for text in raw[4 + tree :].split(b"\0"))
