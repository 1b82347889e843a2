"""Guidance as one line of text, for command lines, files and reports: ``gated:entropy=1.0+args:weight=3``.

    SPEC   = RULE | WRAPPER + SPEC        a wrapper, such as gated, guides by the rule behind its ``+``
    RULE   = NAME | NAME:FIELD=VALUE,FIELD=VALUE...

NAME is that of a file of this package which defines a rule, ``package.module:Class`` for one's own, or ``plain`` for no
guidance; FIELD is a field of its dataclass, whose type says how the value is read:

- a number, a word of a fixed set, ``true`` or ``false``; ``low/high`` for a pair; ``none`` where a field may be that;
- a label, or an :class:`Ensemble` of labels: ``a*1.0&b*0.5`` (a weighted sum; a weight left out is 1), ``mean(a&b)``,
  ``min(a&b)``, ``cautious(a&b)``, ``cautious:0.5(a&b)`` with its caution;
- a model: ``base.gguf``, or ``base.gguf|sidecar.otter.gguf``;
- a text, or its tokens: ``[1/2/3]``.

What stands in double quotes is text as it is, with ``""`` for a quote: needed around ``,`` and ``+``, and around ``*``,
``&`` and ``(`` of a label.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin

from .._numbers import shown
from ..errors import ConfigError
from . import rules
from .base import Policy
from .ensemble import Combination, Ensemble
from .rules import PLAIN, members, registry, rule_class, types_of, wrapped_field
from .search import Search

if TYPE_CHECKING:
    from ..context.session import LanguageModel

Guidance: TypeAlias = "Policy | Search | None"
Load: TypeAlias = "Callable[[str], LanguageModel]"

_SYNTAX = """\
A rule is NAME, or NAME:FIELD=VALUE,FIELD=VALUE... A name with +RULE is followed by the rule that it wraps:
gated:entropy=1+args:weight=2. Text with , or + stands in double quotes. A class of your own is package.module:Class,
or package.module:Class:FIELD=VALUE...; modules in the working folder are found too.

A label is a reward's name, or an ensemble: a*1.0&b*0.5, mean(a&b), min(a&b), cautious(a&b). A model is base.gguf
or base.gguf|sidecar.otter.gguf. A pair is low/high."""
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_COMBINED = re.compile(rf"({'|'.join(get_args(Combination))})(?::([^()]*))?\((.*)\)", re.DOTALL)
_BARE = re.compile(r"[\w.:/|-]+")
_OWN = re.compile(r"\s*([\w.]+:[\w.]+)\s*(?::(.*))?", re.DOTALL)
"""Module and class, and options: ``args:weight`` is none, as ``args`` is a rule."""


def parse(text: str, load: Load | None = None, *, own: bool = True) -> Guidance:
    """The guidance that a line of text describes; ``plain`` is None.

    Args:
        text: See the module.
        load: Opens the models that a rule compares with, from ``base.gguf`` or ``base.gguf|sidecar.otter.gguf``
            (:func:`model_files` takes them apart).
        own: Whether classes of one's own may be named, whose modules are then imported.

    Raises:
        ConfigError: Unknown name or field, or a wrong value; the line names what there is.
    """
    chain = [_Rule.read(part) for part in _split(text, "+", text)]
    for rule in chain:
        _check_name(rule.name, own)
    guidance: Guidance = None
    for index, rule in enumerate(reversed(chain)):
        guidance = _build(rule, guidance, index > 0, load)
    return guidance


def from_json(value: object, load: Load | None = None, *, own: bool = True) -> Guidance:
    """The guidance that a JSON value describes: a text as :func:`parse` reads it, null for none, or an object with
    ``rule`` and the rule's fields: ``{"rule": "args", "weight": 1.5, "n_candidates": 10}``.

    The field of a wrapper is such a value again, a label may be the object of an :class:`Ensemble`'s fields, numbers
    are numbers, and pairs and tokens are arrays. The other arguments and errors as :func:`parse`.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return parse(value, load, own=own)
    if not isinstance(value, dict) or not isinstance(value.get("rule"), str):
        raise ConfigError(f"guidance is {shown(value)}, expected a text, or an object with 'rule' and its fields")
    name, fields = value["rule"], {key: part for key, part in value.items() if key != "rule"}
    _check_name(name, own)
    if name == PLAIN:
        return _build(_Rule(name, fields), None, False, load)
    inner = wrapped_field(rule_class(name))
    has_inner = inner in fields
    guidance = from_json(fields.pop(inner), load, own=own) if inner is not None and has_inner else None
    hints = types_of(rule_class(name))
    options = {key: _text_of_json(part, hints.get(key), f"guidance {name}: {key}") for key, part in fields.items()}
    return _build(_Rule(name, options), guidance, has_inner, load)


def format(guidance: Guidance) -> str:
    """The line of text that :func:`parse` reads as the same guidance; fields at their defaults are left out.

    A class of another package gives its ``repr``, which cannot be parsed. Of a model the base's path alone is written:
    its sidecar does not change logits.
    """
    if guidance is None:
        return PLAIN
    rule = type(guidance)
    name = rules.name_of(rule)
    if name is None:  # the default repr holds an address, another one each time
        return f"{rule.__module__}:{rule.__qualname__}" if rule.__repr__ is object.__repr__ else repr(guidance)
    inner, hints = wrapped_field(rule), types_of(rule)
    options = [
        f"{field.name}={_text_of(getattr(guidance, field.name), hints[field.name])}"
        for field in rules.fields_of(rule)
        if getattr(guidance, field.name) != rules.default_of(field)
    ]
    text = name + (":" + ",".join(options) if options else "")
    return f"{text}+{format(getattr(guidance, inner))}" if inner else text


def override(guidance: Policy | Search, name: str, value: object) -> Policy | Search:
    """The same guidance with another value of one field, be it of the rule or of the one that it wraps.

    ``ConfigError`` if neither has the field.
    """
    return _override(guidance, name, value, guidance)


def describe() -> str:
    """All rules with their fields, defaults and meanings, as text of at most 120 columns."""
    paragraphs = [_SYNTAX, f"{PLAIN}\n    No guidance."]
    for name, rule in registry().items():
        title = f"{name}+RULE" if wrapped_field(rule) else name
        lines = [title, *_wrapped(rules.first_paragraph(rule), "    ")]
        meanings = rules.field_meanings(rule)
        for field in rules.fields_of(rule):
            line = f"{field.name}={default_text(field)}  {meanings.get(field.name, '')}"
            lines += _wrapped(line.rstrip(), "      ", "          ")
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


def default_text(field: rules.Field) -> str:
    """A field's default as :func:`format` writes it, or ``...``."""
    default = rules.default_of(field)
    return "..." if default is rules.NEEDED else _text_of(default, None)


def model_files(text: str) -> tuple[str, str | None]:
    """Base and sidecar of ``base.gguf|sidecar.otter.gguf``; of ``base.gguf`` there is no sidecar."""
    path, _, sidecar = text.partition("|")
    return path, sidecar or None


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Rule:
    """A name with the texts of its options."""

    name: str
    options: dict[str, str]

    @classmethod
    def read(cls, text: str) -> _Rule:
        name, _, rest = (part.strip() for part in text.partition(":"))
        if name not in (PLAIN, *registry()) and (own := _OWN.fullmatch(text)):
            name, rest = own[1], (own[2] or "").strip()
        options: dict[str, str] = {}
        for part in _split(rest, ",", text) if rest else ():
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals:
                raise ConfigError(f"guidance {name}: expected FIELD=VALUE, found {part.strip()!r}")
            if key in options:
                raise ConfigError(f"guidance {name}: {key} is given twice")
            options[key] = value
        return cls(name, options)


def _check_name(name: str, own: bool) -> None:
    if not own and name not in (PLAIN, *registry()):
        raise ConfigError(f"guidance: there is no {name!r}; there are: {', '.join((PLAIN, *registry()))}")


def _build(rule: _Rule, inner: Guidance, has_inner: bool, load: Load | None) -> Guidance:
    """The object of a rule; ``inner`` is what stands behind its ``+``, if anything does."""
    if rule.name == PLAIN and not rule.options and not has_inner:
        return None
    found = rule_class(rule.name)
    field = wrapped_field(found)
    if has_inner and field is None:
        wrappers = ", ".join(name for name, other in registry().items() if wrapped_field(other))
        raise ConfigError(f"guidance {rule.name}: nothing can follow with +, only wrappers take a rule ({wrappers})")
    if field is not None and not isinstance(inner, Policy):
        raise ConfigError(f"guidance {rule.name}: needs a token-level rule to guide by, such as {rule.name}+args")
    values = _values(rule, found, load)
    try:
        return found(**values, **({field: inner} if field else {}))
    except ConfigError:
        raise
    except Exception as error:  # one's own class can fail with anything
        raise ConfigError(f"guidance {rule.name}: {error}") from error


def _values(rule: _Rule, found: rules.Rule, load: Load | None) -> dict[str, Any]:
    hints, known = types_of(found), {field.name: field for field in rules.fields_of(found)}
    unknown = [key for key in rule.options if key not in known]
    if unknown:
        raise ConfigError(
            f"guidance {rule.name}: there is no field {unknown[0]!r}; there are: {', '.join(known) or 'none'}"
        )
    needed = [name for name, field in known.items() if rules.default_of(field) is rules.NEEDED]
    missing = [f"{name}=..." for name in needed if name not in rule.options]
    if missing:
        raise ConfigError(f"guidance {rule.name}: needs {', '.join(missing)}")
    return {key: _value(text, hints[key], f"guidance {rule.name}: {key}", load) for key, text in rule.options.items()}


def _value(text: str, hint: Any, where: str, load: Load | None) -> Any:
    """What a type hint makes of a text. ``ConfigError`` says what was expected."""
    kinds = members(hint)
    if Ensemble in kinds and _is_ensemble(text):
        return _ensemble(text, where)
    for kind in sorted(kinds, key=lambda kind: kind is str):  # any text is a str
        if kind is rules.Model and text != "none":
            if load is None:
                raise ConfigError(f"{where} names a model: give parse() a function that opens it (load=)")
            return load(_unquoted(text))
        with suppress(KeyError, ValueError):
            return _KINDS[get_origin(kind) or kind][1](text, get_args(kind))
    expected = [
        _KINDS[name][0].format(", ".join(map(str, get_args(kind))))
        for kind in kinds
        if (name := get_origin(kind) or kind) in _KINDS
    ]
    raise ConfigError(f"{where} is {text!r}, expected {' or '.join(expected) or 'nothing: it cannot be given as text'}")


def _numbers(text: str, types: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = _unquoted(text).split("/")
    if types[1:] == (...,):
        types = types[:1] * len(parts)
    return tuple(kind(part) for kind, part in zip(types, parts, strict=True))


def _tokens(text: str, _: tuple[Any, ...]) -> tuple[int, ...]:
    if text[:1] + text[-1:] != "[]":
        raise ValueError(text)
    return tuple(int(part) for part in text[1:-1].split("/") if part)


_KINDS: dict[Any, tuple[str, Callable[[str, tuple[Any, ...]], Any]]] = {
    type(None): ("none", lambda text, _: {"none": None}[text]),
    bool: ("true or false", lambda text, _: {"true": True, "false": False}[_unquoted(text)]),
    int: ("a whole number", lambda text, _: int(_unquoted(text))),
    float: ("a number", lambda text, _: float(_unquoted(text))),
    str: ("text", lambda text, _: _unquoted(text)),
    Literal: ("one of {}", lambda text, choices: {str(choice): choice for choice in choices}[_unquoted(text)]),
    tuple: ("numbers with / between them, such as 0/1", _numbers),
    Sequence: ("tokens such as [1/2/3]", _tokens),
}
"""For a type, or for what it is made of: what is expected, and how it is read, given its arguments. ``KeyError`` or
``ValueError`` where a text is none of its values."""


def _ensemble(text: str, where: str) -> Ensemble:
    """A combination of labels."""
    combined = _COMBINED.fullmatch(text)
    combination: Any
    combination, caution, inside = combined.groups() if combined else ("sum", None, text)
    weights: dict[str, float] = {}
    for member in _split(inside, "&", text):
        label, *factor = (part.strip() for part in _split(member, "*", text))
        if not label or len(factor) > 1 or _unquoted(label) in weights:
            raise ConfigError(f"{where} is {text!r}, expected LABEL*WEIGHT&LABEL*WEIGHT..., each label once")
        weights[_unquoted(label)] = _value(factor[0], float, where, None) if factor else 1.0
    return Ensemble(weights, combination, 1.0 if caution is None else _value(caution, float, where, None))


def _split(text: str, separator: str, whole: str) -> list[str]:
    """Parts between separators that stand outside quotes."""
    if text.count('"') % 2:
        raise ConfigError(f"guidance: a quote is open in {whole!r}")
    hidden = _QUOTED.sub(lambda match: "\0" * len(match.group()), text)
    ends = [*(match.start() for match in re.finditer(re.escape(separator), hidden)), len(text)]
    return [text[begin:end] for begin, end in zip([0, *(end + 1 for end in ends)], ends, strict=False)]


def _unquoted(text: str) -> str:
    return _QUOTED.sub(lambda match: match.group(1).replace('""', '"'), text)


def _is_ensemble(text: str) -> bool:
    outside = _QUOTED.sub("", text)
    return "*" in outside or "&" in outside or _COMBINED.fullmatch(text) is not None


def _text_of_json(value: object, hint: Any, where: str) -> str:
    """A field's value as it stands in a line of text. ``ConfigError`` if no field takes such a thing."""
    if isinstance(value, str):
        return value if _is_ensemble(value) else _quoted(value)
    if value is None or isinstance(value, (bool, int, float)):
        return _text_of(value, None)
    if isinstance(value, list) and all(type(part) in (int, float) for part in value):
        return _text_of(tuple(value), hint)
    if isinstance(value, dict) and isinstance(value.get("weights"), dict):
        unknown = value.keys() - {"weights", "combination", "caution"}
        if not unknown:
            return _ensemble_text(Ensemble(**value))
    raise ConfigError(f"{where} is {shown(value)}, expected a text, a number, a list of numbers, or an ensemble")


def _wrapped(text: str, first: str, further: str | None = None) -> list[str]:
    return textwrap.wrap(text, 118, initial_indent=first, subsequent_indent=further or first, break_on_hyphens=False)


# ---- writing -------------------------------------------------------------------------------------------------------


def _text_of(value: object, hint: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(float(value) if isinstance(value, float) else int(value)).replace("e+", "e")
    if isinstance(value, tuple):
        numbers = "/".join(_text_of(number, None) for number in value)
        return f"[{numbers}]" if any(get_origin(member) is Sequence for member in members(hint)) else numbers
    if isinstance(value, Ensemble):
        return _ensemble_text(value)
    return _quoted(value if isinstance(value, str) else str(getattr(value, "model_path", value)))


def _ensemble_text(ensemble: Ensemble) -> str:
    members = "&".join(f"{_quoted(label)}*{_text_of(weight, float)}" for label, weight in ensemble.weights.items())
    if ensemble.combination == "sum":
        return members
    caution = f":{_text_of(ensemble.caution, float)}" if ensemble.combination == "cautious" else ""
    return f"{ensemble.combination}{caution}({members})"


def _quoted(text: str) -> str:
    return text if _BARE.fullmatch(text) and text != "none" else '"' + text.replace('"', '""') + '"'


def _override(guidance: Policy | Search, name: str, value: object, whole: Policy | Search) -> Policy | Search:
    inner = wrapped_field(type(guidance))
    changed: dict[str, Any]
    if name in [field.name for field in rules.fields_of(type(guidance))]:
        changed = {name: value}
    elif inner:
        changed = {inner: _override(getattr(guidance, inner), name, value, whole)}
    else:
        raise ConfigError(f"guidance {format(whole)}: there is no field {name!r}")
    return dataclasses.replace(guidance, **changed)  # type: ignore[type-var]
