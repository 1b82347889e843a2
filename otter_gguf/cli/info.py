"""``otter-gguf info``: what a file is and holds; without a file, versions and devices."""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path
from typing import Any

from ..errors import ConfigError, FileError
from ..gguf.atomic import atomic_path
from ..heads import find
from ..text import shortened, terminal_safe
from ._common import print_json, read_text

HELP = "show what a GGUF file holds, or this build and its devices"

BEGIN = "<!-- otter-gguf info --architectures --markdown README.md -->"
END = "<!-- end of the table -->"
"""Marks in a Markdown file; the table between them is written by the command that the first one names."""
STDOUT = "-"

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = f"{HELP}. A file is checked as thoroughly as before running it."
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument("file", type=Path, nargs="?", metavar="FILE", help="base, sidecar or merged GGUF")
    subject.add_argument("--architectures", action="store_true", help="the architectures that can be widened")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="JSON for machines")
    form.add_argument(
        "--markdown",
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="with --architectures: a table in Markdown; written between the marks of FILE, if one is named",
    )


def run(args: argparse.Namespace) -> int:
    """Print the description of a file, of the environment, or of the architectures."""
    from ..gguf.describe import describe, environment

    if args.architectures:
        _show_architectures(as_json=args.json, markdown=args.markdown)
        return 0
    if args.markdown is not None:
        raise ConfigError("--markdown is for --architectures")
    info = describe(args.file) if args.file else environment()
    if args.json:
        print_json(info)
    else:
        for title, text in file_rows(info) if args.file else environment_rows(info):
            print(f"{title:<16} {terminal_safe(shortened(' '.join(text.split()), 1000))}")
    return 0


def _show_architectures(*, as_json: bool, markdown: str | None) -> None:
    from ..architectures import table

    rows = table()
    if as_json:
        print_json(rows)
    elif markdown == STDOUT:
        print(markdown_table(rows))
    elif markdown is not None:
        write_between_marks(Path(markdown), markdown_table(rows))
    else:
        titles = {"model_type": "Hugging Face", "gguf": "GGUF", "title": "models", "notes": "notes"}
        for row in (titles, *rows):
            print(f"{row['model_type']:<14} {row['gguf']:<10} {row['title']}; {row['notes']}")


def markdown_table(rows: list[dict[str, str]]) -> str:
    """What is supported, as the README has it."""
    lines = ["| model | GGUF | tested | notes |", "|---|---|---|---|"]
    lines += [f"| {row['title']} | `{row['gguf']}` | {row['tested']} | {row['notes']} |" for row in rows]
    return "\n".join(lines)


def write_between_marks(path: Path, text: str) -> None:
    """Replace what stands between :data:`BEGIN` and :data:`END` in a file.

    Raises:
        FileError: the file cannot be read or written, or does not have both marks once, in this order.
    """
    before, begin, rest = read_text(str(path)).partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise FileError(f"{path}: expected one {BEGIN} and one {END} behind it, to write the table between")
    with atomic_path(path, force=True) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def environment_rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and text of each line, without a file."""
    rows = [("llama.cpp", f"{info['llama_cpp_version']}, commit {info['llama_cpp_commit']}")]
    for device in info["devices"]:
        memory = f", {human_size(device['memory_free'])} free of {human_size(device['memory_total'])}"
        rows.append(("device", f"{device['name']}: {device['description']} ({device['type']}{memory})"))
    return rows


def file_rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and text of each line about a file."""
    shards = f" in {info['shards']} files" if info["shards"] > 1 else ""
    rows = [
        ("file", info["path"]),
        ("kind", f"{info['kind']}, {human_size(info['size'])}{shards}, GGUF version {info['gguf_version']}"),
        ("name", str(info["name"] or "-")),
        ("architecture", str(info["architecture"])),
    ]
    if info["geometry"]:
        rows.append(("base geometry", _geometry(info["geometry"])))
    else:
        rows.append(("base geometry", "of a kind that cannot be widened"))
    rows.append(("fingerprint", info["fingerprint"]))
    if info["tensors"]:
        rows.append(("base tensors", _tensors(info["tensors"])))
    if info["problem"]:
        rows.append(("will not run", info["problem"]))
    if "insertion" in info:
        rows += _insertion_rows(info)
    return rows


def _insertion_rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    insertion = info["insertion"]
    rows = [("inserted tensors", _tensors(info["inserted_tensors"]))]
    source = insertion["state_source"]
    if source == "slice":
        first = insertion["state_offset"]
        source = f"slice of channels {first} to {first + insertion['width'] - 1}"
    rows.append(("width", f"{insertion['width']}" + (f" ({source})" if insertion["width"] else ": heads only")))
    sizes = list(zip(insertion["n_head_kv"], insertion["n_ff"], strict=True))
    layer = 0
    for (n_head_kv, n_ff), same in groupby(sizes):
        last = layer + len(list(same)) - 1
        name = f"layer {layer}" if layer == last else f"layers {layer}-{last}"
        rows.append((name, f"KV heads {n_head_kv}, FFN {n_ff}" if n_head_kv or n_ff else "nothing inserted"))
        layer = last + 1
    for head in insertion["heads"]:
        labels = ", ".join(
            f"{label} (scale {scale:g}, shift {shift:g})"
            for label, scale, shift in zip(head["labels"], head["scale"], head["shift"], strict=True)
        )
        kind = find(head["kind"]).summary.format(**head)
        rows.append(
            (
                f"head {head['name']}",
                f"{kind and kind + ', '}reads {head['input']}, activation {head['activation']}: {labels}",
            )
        )
    return rows


def _geometry(geometry: dict[str, Any]) -> str:
    return (
        f"{geometry['n_layer']} layers, width {geometry['n_embd']}, {geometry['n_head']} heads of "
        f"{geometry['head_dim']} ({geometry['n_head_kv']} KV), FFN {geometry['n_ff']}, {geometry['n_vocab']} tokens"
    )


def _tensors(summary: dict[str, Any]) -> str:
    types = ", ".join(f"{entry['count']} {name}" for name, entry in sorted(summary["types"].items()))
    return f"{summary['parameters']:,} parameters, {human_size(summary['bytes'])}: {types}"


def human_size(n_bytes: float) -> str:
    """Bytes with a binary unit."""
    for unit in _UNITS:
        if n_bytes < 1024 or unit == _UNITS[-1]:
            break
        n_bytes /= 1024
    return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
