import string

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_cli.recipe.prompts import clean_prompt, has_words, unescaped, with_style

TRICKY = {
    "  a  red\tcircle\n\nmoves ": "a red circle moves",
    "caf&amp;eacute; &lt;at&gt; dawn": "café <at> dawn",
    "&amp;amp;amp;": "&",
    "schÃ¶n": "schön",  # UTF-8 that was read as Latin-1
    "“curly” ‘quotes’ … ﬁne": "\"curly\" 'quotes' … fine",
    "full\u3000width\u00a0spaces": "full width spaces",
    "": "",
    "\ufeffmark": "mark",
    "ＷＩＤＥ": "WIDE",
}
"""Prompts, and what the reference (diffusers 0.42.1) makes of them."""


def test_prompts_are_cleaned():
    assert {text: clean_prompt(text) for text in TRICKY} == TRICKY


@pytest.mark.oracle
def test_the_reference_cleans_them_so():
    reference = pytest.importorskip("diffusers.pipelines.helios.pipeline_helios").prompt_clean
    assert {text: reference(text) for text in TRICKY} == TRICKY


@given(st.text())
def test_a_cleaned_prompt_is_one_line(text):
    cleaned = clean_prompt(text)
    assert cleaned == " ".join(cleaned.split())


@given(st.text(string.printable))
def test_plain_text_is_cleaned_as_all_text_is(text):
    """Plain text skips ftfy, which is slow to import, with the same result."""
    assert clean_prompt(text) == " ".join(unescaped(unescaped(ftfy.fix_text(text))).split())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A boat leaves.", "A boat leaves, 35mm film"),
        ("A boat leaves", "A boat leaves, 35mm film"),
        ("A boat leaves,", "A boat leaves, 35mm film"),
        ("Does it leave?", "Does it leave? 35mm film"),
        ("It waits...", "It waits... 35mm film"),
    ],
)
def test_the_style_follows_the_prompt(prompt, expected):
    assert with_style(prompt, " 35mm \n film ") == expected
    assert with_style(prompt, "") == prompt


def test_what_cannot_be_seen_is_no_prompt():
    assert not any(map(has_words, ["", "  \n", "&nbsp;", "\u200b", "\ufeff"]))
    assert has_words("a")
