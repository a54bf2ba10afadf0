"""The README's table of cards is what the cost model says."""

from pathlib import Path

from support import cards

README = Path(__file__).parents[2] / "README.md"


def test_the_table_of_cards_is_up_to_date():
    """After a change: `python tests/support/cards.py`."""
    assert cards.table() in README.read_text()


def test_the_table_of_weights_in_few_bits_is_up_to_date():
    assert cards.low_bit_table() in README.read_text()
