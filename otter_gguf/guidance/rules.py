"""The rules that guidance has, by name, and what each says of itself: fields, types, defaults, meanings."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import pkgutil
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TypeAlias, TypeGuard, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from ..plugins import load_function
from .base import Policy
from .search import Search

Rule: TypeAlias = "type[Policy] | type[Search]"
Field: TypeAlias = "dataclasses.Field[Any]"

PLAIN = "plain"
"""The name of no guidance."""

NEEDED = object()
"""The default of a field that has none."""


class Model:
    """Stands for ``LanguageModel`` in the types of fields, so that reading them loads no engine."""


def rule_class(name: str) -> Rule:
    """The class of a name: of a file of this package, or of one's own as ``package.module:Class``.

    ``ConfigError`` lists the names there are, or says what is wrong with one's own.
    """
    if ":" in name:
        return _own_class(name)
    known = registry()
    if name not in known:
        own = "; one's own class is package.module:Class"
        raise ConfigError(f"guidance: there is no {name!r}; there are: {', '.join([PLAIN, *known])}{own}")
    return known[name]


def registry() -> dict[str, Rule]:
    """Every rule of the package by name: that of the file which defines it. Files without a rule are passed over."""
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(sys.modules[__package__].__path__)):
        module = importlib.import_module(f".{name}", __package__)
        rules = [value for value in vars(module).values() if _is_rule(value) and value.__module__ == module.__name__]
        if rules:
            (found[name],) = rules
    return found


def _is_rule(value: object) -> TypeGuard[Rule]:
    return isinstance(value, type) and issubclass(value, (Policy, Search)) and not inspect.isabstract(value)


def _own_class(name: str) -> Rule:
    found = load_function(name, "guidance", "class")
    if not _is_rule(found):
        raise ConfigError(f"guidance {name}: expected a class that derives from Policy or Search and can be used")
    return found


def name_of(rule: type) -> str | None:
    """The name of a class; None if it is not one of the package's."""
    return next((name for name, known in registry().items() if known is rule), None)


def fields_of(rule: type) -> tuple[Field, ...]:
    """What a caller can set: all fields of the constructor but the wrapped policy, and but those that are left out of
    the ``repr``, which are for the rule's own use."""
    inner = wrapped_field(rule)
    if not dataclasses.is_dataclass(rule):
        return ()
    return tuple(field for field in dataclasses.fields(rule) if field.init and field.repr and field.name != inner)


def wrapped_field(rule: type) -> str | None:
    """The field that holds the policy which a wrapper guides by; None for any other rule."""
    if not dataclasses.is_dataclass(rule):
        return None
    with suppress(ConfigError):  # one's own class guides, whatever its types
        return next((name for name, hint in types_of(rule).items() if _is_policy(hint)), None)
    return None


def innermost(guidance: Policy | Search | None) -> Policy | Search | None:
    """What wrappers wrap; anything else is itself."""
    while guidance is not None and (field := wrapped_field(type(guidance))):
        guidance = getattr(guidance, field)
    return guidance


def _is_policy(hint: Any) -> bool:
    # Python 3.10 takes list[int] for a type, and then refuses it as one.
    return get_origin(hint) is None and isinstance(hint, type) and issubclass(hint, Policy)


def types_of(rule: type) -> dict[str, Any]:
    """The type of each field, with :class:`Model` for ``LanguageModel``. ``ConfigError`` if one's own class has others
    that are not there at run time."""
    try:
        return get_type_hints(rule, localns={"LanguageModel": Model})
    except NameError as error:
        raise ConfigError(f"guidance {rule.__module__}:{rule.__name__}: type of a field: {error}") from None


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
