"""Rows of every kind for the toy, and the heads that they train."""

from __future__ import annotations

import random
from typing import Any

from datasets import Dataset

from otter_gguf.config import HeadConfig
from otter_gguf.training import DataOptions, OtterModel
from tests.training.toy import toy_otter, toy_rows

HEADS = (
    HeadConfig("reward"),
    HeadConfig("grade", activation="sigmoid"),
    HeadConfig("tone", ("light", "dark", "none"), activation="softmax"),
    HeadConfig("step", activation="sigmoid"),
)
OPTIONS = DataOptions(rewards=("reward", "grade", "tone.light", "tone.dark", "tone.none", "step"))


def mixed_otter(base: Any = None, **changes: Any) -> OtterModel:
    """The toy with a head for each kind of row."""
    return toy_otter(base=base, heads=HEADS, **changes)


def mixed_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs with and without margin, graded texts, classed texts and texts in steps, in turn: light is good."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number, pair in enumerate(toy_rows(count, seed)):
        prompt, good = pair["prompt"], draw.random() < 0.5
        completion = pair["chosen" if good else "rejected"]
        if number % 5 == 0:
            rows.append({**pair, "reward": "reward"})
        elif number % 5 == 1:
            rows.append({**pair, "margin": round(draw.random(), 2), "reward": "reward"})
        elif number % 5 == 2:
            label = draw.choice([good, 0.9 if good else 0.1])
            rows.append({"prompt": prompt, "completion": completion, "label": label, "reward": "grade"})
        elif number % 5 == 3:
            rows.append({"prompt": prompt, "completion": completion, "class": "light" if good else "dark"})
        else:
            steps = [pair["chosen"], pair["rejected"]] if good else [pair["rejected"], pair["chosen"], pair["chosen"]]
            labels = [step == pair["chosen"] for step in steps]
            rows.append({"prompt": prompt, "completions": steps, "labels": labels, "reward": "step"})
    return rows


def table_of(rows: list[dict[str, Any]]) -> Any:
    """The rows as a ``datasets.Dataset``: every column that one of them has, each of one type."""
    numbers: dict[str, Any] = {"label": float, "margin": float, "labels": lambda labels: [float(x) for x in labels]}

    def entry(row: dict[str, Any], name: str) -> Any:
        return None if row.get(name) is None else numbers.get(name, lambda value: value)(row[name])

    columns = sorted({name for row in rows for name in row})
    return Dataset.from_dict({name: [entry(row, name) for row in rows] for name in columns})
