"""Guided decoding: policies that choose the next token by the rewards of its candidates."""

from .args import ARGS
from .base import Candidates, Policy, Signal

__all__ = ["ARGS", "Candidates", "Policy", "Signal"]
