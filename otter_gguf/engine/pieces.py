"""Tokens of one text into pieces of text that are certain."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..steps import Event, FinishReason, Piece, Record
from ..text import TextStream


class PieceMaker:
    """Turns the tokens of one text into pieces.

    A token belongs to the first piece that holds a character of it, so that tokens within a stop string are left out.
    """

    def __init__(self, text: TextStream) -> None:
        self.text = text
        """What finds characters and stop strings in the tokens' bytes."""
        self._waiting: deque[tuple[int, Event]] = deque()
        self._records: list[Record] = []
        self._before_stop = ""

    def push(self, event: Event, offset: int, certain: str) -> Piece | None:
        """Take a token that :attr:`text` has just been given; the piece that is certain now, if there is one.

        Args:
            event: The token.
            offset: Characters decoded before it.
            certain: What :meth:`otter_gguf.text.TextStream.push` answered.
        """
        self._waiting.append((offset, event))
        self._records += event.records
        if self.text.stopped:
            self._before_stop += certain
            return None
        return self._piece(certain, self.text.released) if certain else None

    def finish(self, reason: FinishReason, records: Iterable[Record] = ()) -> Piece:
        """No more tokens: the rest."""
        rest = self._before_stop + self.text.finish()
        self._records += records
        piece = self._piece(rest, self.text.released if self.text.stopped else self.text.released + 1)
        piece.finish_reason = reason
        return piece

    def _piece(self, text: str, limit: int) -> Piece:
        taken = []
        while self._waiting and self._waiting[0][0] < limit:
            taken.append(self._waiting.popleft())
        records, self._records = self._records, []
        return Piece(0, text, [event for _, event in taken], [place for place, _ in taken], None, records)
