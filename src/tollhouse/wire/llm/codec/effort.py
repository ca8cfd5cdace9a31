"""How much thinking: words and tokens, one table.

Some APIs take a word, some a number of tokens. A word becomes the number it usually means; a number becomes the word
whose number it does not exceed.
"""

__all__ = ["budget_of", "effort_of"]

_BUDGETS = {
    "none": 0,
    "minimal": 1_024,
    "low": 2_048,
    "medium": 8_192,
    "high": 24_576,
    "xhigh": 49_152,
    "max": 49_152,
}
_WORDS = ("none", "minimal", "low", "medium", "high", "xhigh")


def budget_of(effort: str) -> int | None:
    """Tokens for a word; None for a word nobody knows."""
    return _BUDGETS.get(effort)


def effort_of(budget: int) -> str:
    """A word for so many tokens (0 or more)."""
    for word in _WORDS:
        if budget <= _BUDGETS[word]:
            return word
    return "xhigh"
