"""Tokens of several texts: what they have in common, and how they are cut into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def batches(texts: Sequence[tuple[T, Sequence[int]]], size: int) -> Iterator[list[tuple[T, Sequence[int]]]]:
    """The tokens of all texts one after the other, cut into batches of ``size``, each part with its text's owner."""
    batch: list[tuple[T, Sequence[int]]] = []
    room = size
    for lane, tokens in texts:
        while tokens:
            batch.append((lane, tokens[:room]))
            left, tokens = room - len(tokens[:room]), tokens[room:]
            if left == 0:
                yield batch
                batch, left = [], size
            room = left
    if batch:
        yield batch


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))


def common_beginning(texts: Sequence[Sequence[int]]) -> int:
    """Length of the longest beginning that all have in common."""
    return min(common_length(texts[0], text) for text in texts)
