"""Models in processes of their own: a crash there is an exception here."""

from .isolated_otter import IsolatedOtter, open_model

__all__ = ["IsolatedOtter", "open_model"]
