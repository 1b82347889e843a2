"""Rows to train on, from files and datasets to batches of token ids.

A row's columns say what it holds (TRL's names where TRL has one):

    prompt, chosen, rejected [, margin]      a preference pair
    prompt, completion, label                a graded text: true, false, or a number from 0 to 1
    prompt, completion, class                a text and its class, one of the labels of one head
    prompt, completions, labels              a text in steps, each with a label as above

``sources`` reads, ``columns`` checks, ``encoding`` tokenises, ``rows`` is what comes out, ``batches`` collates.
"""

from __future__ import annotations

from .batches import collate
from .encoding import load_rows, tokenise_rows
from .options import DataOptions
from .rows import Classed, Graded, Pair, RewardDataset, Row, Stepped

__all__ = [
    "Classed",
    "DataOptions",
    "Graded",
    "Pair",
    "RewardDataset",
    "Row",
    "Stepped",
    "collate",
    "load_rows",
    "tokenise_rows",
]
