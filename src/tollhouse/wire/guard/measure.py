"""How long a text may be, as it comes.

Rule: what is counted is counted once, piece by piece, and never needs the text again.
"""

__all__ = ["Length"]


class Length:
    """Counts one text against bounds. None: no bound.

    characters: Unicode characters. size: bytes in UTF-8. words: runs of what is no white space, a script without
    spaces being few of them. lines: line feeds, and one more for what follows the last.
    """

    __slots__ = ("_characters", "_in_word", "_lines", "_size", "_words", "characters", "lines", "size", "words")

    def __init__(
        self,
        *,
        characters: int | None = None,
        size: int | None = None,
        words: int | None = None,
        lines: int | None = None,
    ) -> None:
        self._characters = characters
        self._size = size
        self._words = words
        self._lines = lines
        self.characters = 0
        self.size = 0
        self.words = 0
        self.lines = 0
        self._in_word = False

    def add(self, piece: str) -> str | None:
        """Counts a further piece. Gives the name of the first bound that is passed."""
        if not piece:
            return None
        self.characters += len(piece)
        if self._size is not None:
            self.size += len(piece) if piece.isascii() else len(piece.encode(errors="surrogatepass"))
        if self._words is not None:
            self.words += len(piece.split()) - (self._in_word and not piece[0].isspace())
            self._in_word = not piece[-1].isspace()
        if self._lines is not None:
            self.lines += piece.count("\n") + (self.lines == 0)
        return self.passed

    @property
    def passed(self) -> str | None:
        """The name of the first bound that is passed."""
        for name, count, bound in (
            ("characters", self.characters, self._characters),
            ("bytes", self.size, self._size),
            ("words", self.words, self._words),
            ("lines", self.lines, self._lines),
        ):
            if bound is not None and count > bound:
                return name
        return None
