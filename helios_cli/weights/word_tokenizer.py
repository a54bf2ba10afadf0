"""The tokenizer of small models: words of a world of coloured shapes, and characters to spell all others.

A word that a small model is to be trained on is one token; any other is spelt. So every ASCII prompt has tokens, and no
piece of an unknown word is mistaken for a known one (`fish` is not an `is` between two letters).
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = {"<pad>": 0, "</s>": 1, "<unk>": 2}

_WORDS = """
a an the one two and with of in on at by to from as is are it its into over under above below behind before near through
across along around between while then that this there not no very

red green blue yellow orange purple white black grey gray pink brown dark light bright pale deep
circle ball disc square box block triangle star shape dot
small large big tiny huge little

move moves moving go goes going roll rolls rolling slide slides sliding glide glides gliding drift drifts drifting
float floats floating fly flies flying fall falls falling rise rises rising climb climbs sink sinks drop drops
circles circling orbit orbits orbiting turn turns turning spin spins bounce bounces bouncing jump jumps jumping
stay stays staying stand stands rest rests still stop stops wait waits return returns
left right up down upward upwards downward downwards leftward rightward forth back side top bottom middle centre center
slowly slow quickly quick fast gently smoothly

background plain gradient scene sea sky ocean water wave waves beach sand night day evening morning dawn dusk sunset
sunrise sun moon stars cloud clouds hill hills mountain mountains field grass meadow horizon snow desert
camera pan pans panning zoom zooms zooming out closer away
becomes become fades fade grows grow shrinks shrink changes change appears disappears
"""

CHARACTERS = string.digits + string.ascii_lowercase + string.punctuation

WORDS = list(dict.fromkeys(_WORDS.split()))

PIECES = list(dict.fromkeys([*SPECIAL, *WORDS, *CHARACTERS]))


def word_tokenizer() -> Tokenizer:
    """Lower case, accents dropped, `</s>` at the end; only letters that have no ASCII form become `<unk>`."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(PIECES)}, unk_token="<unk>"))
    made.add_special_tokens(list(SPECIAL))
    made.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    piece = Regex(rf"\b(?:{'|'.join(WORDS)})\b|\S")
    made.pre_tokenizer = pre_tokenizers.Split(piece, behavior="removed", invert=True)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", SPECIAL["</s>"])])
    return made
