#!/usr/bin/env python3
"""Convert adapters, widened checkpoints and base models to GGUF, and sidecars back: `otter-gguf convert`.

In a clone it is also a script.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the folder's own modules are found through the package instead
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from otter_gguf.errors import ConfigError, FileError, OtterError

HELP = "convert an adapter, a widened checkpoint or a Hugging Face base to GGUF, or a sidecar back"

_SIDECAR_OPTIONS = ("base", "base_outfile", "base_hf", "merged", "name", "tokenizer", "no_tokenizer_check")
_OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "auto")
_DESCRIPTION = f"""{HELP}.

The kind of the input is found in the folder: an adapter (otter_config.json) or a widened checkpoint (config.json with
"otter") gives a sidecar and needs --base; any other Hugging Face model of a supported architecture gives a base GGUF,
by llama.cpp's converter; code that a model brings is never run.
--to-adapter makes an adapter folder of a sidecar or a merged file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``otter-gguf convert``."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "input",
        type=Path,
        metavar="INPUT",
        help="folder of an adapter, a widened checkpoint or a Hugging Face model; with --to-adapter a GGUF file",
    )
    parser.add_argument(
        "-o",
        "--outfile",
        type=Path,
        metavar="PATH",
        help="file to write (default: inside INPUT), or folder of the adapter (default: beside INPUT)",
    )
    parser.add_argument(
        "--outtype",
        choices=_OUTTYPES,
        default="auto",
        help="type of the matrices (auto: q8_0 where a row is a multiple of 32, else f16; for a base: 16 bits)",
    )
    parser.add_argument(
        "--base", type=Path, metavar="PATH", help="the base: a GGUF in any quantization, or its Hugging Face folder"
    )
    parser.add_argument(
        "--base-outfile",
        type=Path,
        metavar="FILE",
        help="GGUF to write the base to if --base is a folder (default: beside the output)",
    )
    parser.add_argument(
        "--base-hf",
        type=Path,
        metavar="FOLDER",
        help="base to compare a widened checkpoint with if --base is quantized",
    )
    tokenizer = parser.add_mutually_exclusive_group()
    tokenizer.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="Hugging Face tokenizer of the training, to compare with the base's (default: the recorded base's, or "
        "that of a --base that is a folder)",
    )
    tokenizer.add_argument(
        "--no-tokenizer-check",
        action="store_true",
        help="convert although training and the GGUF may make other tokens of a text",
    )
    parser.add_argument("--merged", action="store_true", help="one file with base and sidecar (widened checkpoint)")
    parser.add_argument("--to-adapter", action="store_true", help="write an adapter folder (sidecar, merged file)")
    parser.add_argument("--name", default="", help="general.name of the sidecar (default: name of INPUT)")
    parser.add_argument("--force", action="store_true", help="replace existing files")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the log of llama.cpp's converter")


def run(args: argparse.Namespace) -> int:
    """Convert; prints the path of the written file."""
    from otter_gguf.adapter_format import CONFIG_NAME
    from otter_gguf.widened_format import is_widened

    folder: Path = args.input
    if args.to_adapter:
        target = _convert_sidecar(args)
    elif not folder.is_dir():
        hint = "expected a folder; an adapter is made of a sidecar or a merged file with --to-adapter"
        raise FileError(f"{folder}: {hint if folder.exists() else 'no such folder'}")
    elif (folder / CONFIG_NAME).is_file():
        target = _convert_adapter(args)
    elif is_widened(folder):
        target = _convert_widened(args)
    else:
        target = _convert_base(args)
    print(target)
    return 0


def _convert_adapter(args: argparse.Namespace) -> Path:
    from otter_gguf.converters.adapter import convert_adapter

    from otter_gguf.adapter_format import BASE_FOLDER, AdapterRecord
    from otter_gguf.gguf.base import BaseFiles

    if args.merged or args.base_hf:
        raise ConfigError("--merged and --base-hf are for a widened checkpoint; join base and sidecar with `merge`")
    target = _target(args, "otter.gguf")
    base_gguf = _base_gguf(args, target)
    record = AdapterRecord.read(args.input)
    own_base = args.input / BASE_FOLDER if record.full else ""
    trained_on = (record.base_name or "", record.revision or "")
    lines = _compare_tokenizers(args, base_gguf, [(own_base, ""), trained_on])
    with BaseFiles.open(base_gguf) as base:
        convert_adapter(args.input, target, base, outtype=args.outtype, name=args.name, force=args.force)
    _warn(lines)
    return target


def _convert_widened(args: argparse.Namespace) -> Path:
    from otter_gguf.converters.widened import convert_widened

    from otter_gguf.gguf.base import BaseFiles
    from otter_gguf.widened_format import read_widened

    target = _target(args, "merged.gguf" if args.merged else "otter.gguf")
    base_hf = args.base_hf or (args.base if args.base and args.base.is_dir() else None)
    base_gguf = _base_gguf(args, target)
    base_name = read_widened(args.input).base_name or ""
    lines = _compare_tokenizers(args, base_gguf, [(args.input, ""), (base_name, ""), (args.base_hf or "", "")])
    with BaseFiles.open(base_gguf) as base:
        convert_widened(
            args.input,
            target,
            base,
            base_hf=base_hf,
            merged=args.merged,
            outtype=args.outtype,
            name=args.name,
            force=args.force,
        )
    _warn(lines)
    return target


def _convert_base(args: argparse.Namespace) -> Path:
    from otter_gguf.converters.base import convert_base

    given = [name for name in _SIDECAR_OPTIONS if getattr(args, name)]
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f'{args.input} is a base (no otter_config.json, no "otter" in config.json): no {options}')
    target = _target(args, "gguf" if args.outtype == "auto" else f"{args.outtype.upper()}.gguf")
    convert_base(args.input, target, outtype=args.outtype, verbose=args.verbose, force=args.force)
    return target


def _convert_sidecar(args: argparse.Namespace) -> Path:
    from otter_gguf.converters.sidecar import convert_sidecar

    given = [name for name in _SIDECAR_OPTIONS if getattr(args, name)]
    given += ["outtype"] if args.outtype != "auto" else []
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"--to-adapter: an adapter is F32 and needs nothing but the sidecar: no {options}")
    source: Path = args.input
    stem = source.name.removesuffix(".gguf").removesuffix(".otter")
    target: Path = args.outfile or source.with_name(f"{stem}-adapter")
    convert_sidecar(source, target, force=args.force)
    return target


def _base_gguf(args: argparse.Namespace, target: Path) -> Path:
    """The base as GGUF; a Hugging Face folder is converted first."""
    base: Path | None = args.base
    if base is None:
        raise ConfigError(f"{args.input}: --base BASE.gguf is missing: the sidecar is bound to its base")
    if not base.is_dir():
        if args.base_outfile:
            raise ConfigError("--base-outfile is for a --base that is a Hugging Face folder")
        return base
    from otter_gguf.converters.base import convert_base

    written: Path = args.base_outfile or target.parent / f"{base.resolve().name}.gguf"
    if written.exists() and not args.force:
        raise FileError(f"{written}: exists already; give it as --base to use it, or --force to replace it")
    convert_base(base, written, verbose=args.verbose, force=args.force)
    return written


def _compare_tokenizers(args: argparse.Namespace, base: Path, names: list[tuple[str | Path, str]]) -> list[str]:
    """Compare the base's tokenizer with that of training, the first that is known; returns lines to print."""
    from otter_gguf.converters.tokenizer import compare_with_folder, compare_with_training

    if args.no_tokenizer_check:
        return [f"{base}: tokenizer not compared: rewards are wrong where training made other tokens of a text"]
    lines: list[str] = (
        compare_with_folder(base, args.tokenizer)
        if args.tokenizer
        else compare_with_training(base, [*names, (args.base, "")])
    )
    return lines


def _warn(lines: list[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def _target(args: argparse.Namespace, ending: str) -> Path:
    if args.outfile:
        return Path(args.outfile)
    folder: Path = args.input
    return folder / f"{folder.resolve().name}.{ending}"


def main() -> int:
    """The script: as the command line's verb, errors on one line."""
    parser = argparse.ArgumentParser(prog="convert_otter_to_gguf.py")
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except OtterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
