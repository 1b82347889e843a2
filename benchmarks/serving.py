"""What serving costs: processor time per token, throughput and time to first token at 1, 4, 8 and 16 streams.

    python benchmarks/serving.py -m base.gguf --otter reward.otter.gguf          # starts the server itself
    python benchmarks/serving.py --url http://127.0.0.1:8080 --pid 4711          # one that runs, such as llama-server

Every stream asks for completions one after the other. Processor time is the server's (/proc), so that other work on the
machine disturbs it least; prompts are in it. The client is its own: asyncio and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

PROMPT = "The otter lives in the sea, and eats urchins; {} of them a day, and then it sleeps."


@dataclass
class Tally:
    """What the clients saw."""

    n_tokens: int = 0
    first: list[float] = field(default_factory=list)
    """Seconds to the first token of each text."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between the tokens of a text."""


async def complete(host: str, port: int, body: dict[str, object], tally: Tally) -> None:
    """One completion, streamed."""
    data = json.dumps({**body, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(host, port)
    begin = last = time.perf_counter()
    writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    first = True
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise RuntimeError(event["error"]["message"])
        if event["choices"] and event["choices"][0]["text"]:
            now = time.perf_counter()
            (tally.first if first else tally.gaps).append(now - (begin if first else last))
            first, last = False, now
            tally.n_tokens += 1
    writer.close()


async def load(url: str, n_streams: int, n_rounds: int, body: dict[str, object]) -> Tally:
    """So many clients at once, each with completions one after the other."""
    where, tally = urlsplit(url), Tally()

    async def client(number: int) -> None:
        for turn in range(n_rounds):
            prompt = PROMPT.format(1000 * turn + number)
            await complete(where.hostname or "", where.port or 80, {**body, "prompt": prompt, "seed": number}, tally)

    await asyncio.gather(*(client(number) for number in range(n_streams)))
    return tally


def processor_seconds(pid: int) -> float:
    """Of a process and its threads, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Address and process of a server; started here unless it is named."""
    if args.url:
        yield args.url, args.pid
        return
    files = [*(["-m", args.model] if args.model else []), *(["--otter", args.otter] if args.otter else [])]
    command = [sys.executable, "-m", "otter_gguf.cli.main", "serve", "--port", "0", "-t", str(args.threads)]
    with subprocess.Popen([*command, "-np", "16", "-c", "8192", *files], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if line.startswith("listening at "))
            yield line.split()[-1], process.pid
        finally:
            process.terminate()


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", help="base GGUF; the demo model if neither this nor --url is given")
    parser.add_argument("--otter", help="its sidecar")
    parser.add_argument("--url", help="a server that runs")
    parser.add_argument("--pid", type=int, help="its process")
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("-n", "--predict", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
    args = parser.parse_args()
    body: dict[str, object] = {"max_tokens": args.predict, "temperature": 0.8, "ignore_eos": True}
    print("| streams | CPU ms/token | tokens/s | first token, ms | gap, ms (median) |\n|---|---|---|---|---|")
    with server(args) as (url, pid):
        asyncio.run(load(url, 1, 1, body))
        for n_streams in args.streams:
            cpu, begin = processor_seconds(pid), time.perf_counter()
            tally = asyncio.run(load(url, n_streams, args.rounds, body))
            wall, cpu = time.perf_counter() - begin, processor_seconds(pid) - cpu
            figures = [1000 * cpu / tally.n_tokens, tally.n_tokens / wall]
            figures += [1000 * median(tally.first), 1000 * median(tally.gaps)]
            print(f"| {n_streams} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
