"""The rules that guidance has, by name, and what each says of itself: fields, types, defaults, meanings."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from .base import Policy
from .search import Search

Rule: TypeAlias = "type[Policy] | type[Search]"
Field: TypeAlias = "dataclasses.Field[Any]"

PLAIN = "plain"
"""The name of no guidance."""

NAMES: Mapping[str, tuple[str, str]] = {
    "args": ("args", "ARGS"),
    "pargs": ("args", "PARGS"),
    "rad": ("rad", "RAD"),
    "vocabulary": ("vocabulary", "Vocabulary"),
    "gated": ("gated", "Gated"),
    "contrast": ("contrast", "Contrast"),
    "dexperts": ("dexperts", "DExperts"),
    "threshold": ("threshold", "Threshold"),
    "cards": ("cards", "CARDS"),
    "best_of_n": ("best_of_n", "BestOfN"),
    "speculative_rejection": ("speculative_rejection", "SpeculativeRejection"),
    "chunk_beam": ("chunk_beam", "ChunkBeam"),
}
"""Module and class of every rule, imported when it is named."""

NEEDED = object()
"""The default of a field that has none."""


class Model:
    """Stands for ``LanguageModel`` in the types of fields, so that reading them loads no engine."""


def rule_class(name: str) -> Rule:
    """The class of a name. ``ConfigError`` lists the names there are."""
    if name not in NAMES:
        raise ConfigError(f"guidance: there is no {name!r}; there are: {', '.join([PLAIN, *NAMES])}")
    module, class_name = NAMES[name]
    found: Rule = getattr(importlib.import_module(f".{module}", __package__), class_name)
    return found


def registry() -> dict[str, Rule]:
    """Every rule by name."""
    return {name: rule_class(name) for name in NAMES}


def name_of(rule: type) -> str | None:
    """The name of a class; None if it is not one of the package's."""
    for name, (module, class_name) in NAMES.items():
        if (rule.__module__, rule.__name__) == (f"{__package__}.{module}", class_name):
            return name
    return None


def fields_of(rule: type) -> tuple[Field, ...]:
    """What a caller can set: all fields of the constructor but the wrapped policy, and but those that are left out of
    the ``repr``, which are for the rule's own use."""
    inner = wrapped_field(rule)
    return tuple(field for field in dataclasses.fields(rule) if field.init and field.repr and field.name != inner)


def wrapped_field(rule: type) -> str | None:
    """The field that holds the policy which a wrapper guides by; None for any other rule."""
    if not dataclasses.is_dataclass(rule):
        return None
    return next((name for name, hint in types_of(rule).items() if _is_policy(hint)), None)


def _is_policy(hint: Any) -> bool:
    # Python 3.10 takes list[int] for a type, and then refuses it as one.
    return get_origin(hint) is None and isinstance(hint, type) and issubclass(hint, Policy)


def types_of(rule: type) -> dict[str, Any]:
    """The type of each field, with :class:`Model` for ``LanguageModel``."""
    return get_type_hints(rule, localns={"LanguageModel": Model})


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of any other type, itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def default_of(field: Field) -> object:
    """The value of a field that is not given, or :data:`NEEDED`."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return NEEDED if field.default_factory is dataclasses.MISSING else field.default_factory()


def first_paragraph(rule: type) -> str:
    """What a class's docstring begins with, without markup."""
    return _plain_words((inspect.getdoc(rule) or "").split("\n\n")[0])


def field_meanings(rule: type) -> dict[str, str]:
    """The text under each field of a dataclass and of its bases; nothing where the source is not at hand."""
    meanings: dict[str, str] = {}
    for base in reversed(rule.__mro__):
        if dataclasses.is_dataclass(base):
            meanings.update(_texts_under_fields(base))
    return meanings


def _texts_under_fields(rule: type) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(rule)))
    except (OSError, SyntaxError):
        return
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            yield field.target.id, _plain_words(str(ast.literal_eval(text.value)))


def _plain_words(text: str) -> str:
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", " ".join(text.split())).replace("``", "")
