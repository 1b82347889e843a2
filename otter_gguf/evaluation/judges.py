"""Judges: what reads the finished texts. A judge that is independent of the guide is what makes a gain believable."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..plugins import load_function

if TYPE_CHECKING:
    from ..model import Otter


@dataclass(frozen=True)
class Judge:
    """Reads a finished text and knows nothing of how it was made."""

    name: str
    """For the report."""
    score: Callable[[str, str], float]
    """(prompt, response) -> score, higher is better, in the judge's own unit."""


def load_judge(name: str) -> Judge:
    """A judge by its name.

    Args:
        name: ``demo`` (the demo's word lists), ``demo-unseen`` (only those words that the demo's preference pairs never
            contain), or ``MODULE:FUNCTION``: a function of the response, or of prompt and response.

    Raises:
        ConfigError: There is no such judge.
    """
    if name in ("demo", "demo-unseen"):
        from ..demo.judge import Judge as WordJudge

        return of_function(WordJudge.load("all" if name == "demo" else "unseen").score, name)
    return of_function(load_function(name, "--judge"), name)


def of_function(function: Callable[..., Any], name: str) -> Judge:
    """A function of the response, or of prompt and response, as a judge.

    The number of parameters without a default decides which it is. What it returns must be a finite number: its score
    raises ``ConfigError`` otherwise.
    """
    takes_prompt = _n_parameters(function) >= 2

    def score_of(prompt: str, response: str) -> float:
        answer = function(prompt, response) if takes_prompt else function(response)
        try:
            score = float(answer)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise ConfigError(f"--judge {name}: returned {answer!r}, expected a finite number")
        return score

    return Judge(name, score_of)


def of_model(llm: Otter) -> Judge:
    """The first label's reward of prompt and response by a model. ``ConfigError`` if it predicts none."""
    if not llm.n_rewards:
        raise ConfigError(f"{llm.model_path}: a plain model judges nothing; give its sidecar (--judge-otter)")
    name = f"{llm.reward_labels[0]} by {Path(llm.model_path).name}"
    return Judge(name, lambda prompt, response: llm.score(prompt, response).reward)


def _n_parameters(function: Callable[..., Any]) -> int:
    """Positional parameters without a default; 1 where Python does not know (functions in C)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds and parameter.default is parameter.empty for parameter in parameters)
