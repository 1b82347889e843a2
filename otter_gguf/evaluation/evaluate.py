"""An evaluation from its files to its figures: generate, read, judge, compare."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import InsertionConfig
from ..engine import sequences_needed
from ..errors import ConfigError
from ..guidance import spec
from ..guidance.search import Search
from ..loading import check_files
from ..model import Otter
from ..options import LoadOptions
from .embed import Embedder, coherences, states_embedder, table_embedder
from .judges import Judge
from .memory import Memory, open_measured
from .metrics import diversity
from .readings import read_texts, reward_column
from .results import FORMAT, VERSION, Judged, Results, summarize
from .runner import PLAIN, SECOND, Arm, Engine, Opened, Settings, run_arms
from .store import Generation, Store

if TYPE_CHECKING:
    from ..guidance.base import Policy

TEXTS = "texts.jsonl"
"""The file of a run's folder that holds what was generated."""

_END = 2**20
_NOT_OURS = ("n_seq_max", "hidden_states", "tensor_split")  # chosen by the run itself, or without a say in its texts

Tick = Callable[[], object]
Progress = Callable[[str, int, int], AbstractContextManager[Tick]]
"""(stage, texts done already, texts) -> a context whose value is called after each text."""


@dataclass(frozen=True)
class Plan:
    """What is evaluated."""

    model: str
    prompts: Sequence[str]
    policies: Mapping[str, Policy | Search]
    """By the name that the report shows. Plain decoding is added."""
    otter: str | None = None
    second_model: str | None = None
    """A separate reward model of the same vocabulary, for the baseline."""
    second_otter: str | None = None
    """Its sidecar."""
    second_policies: Mapping[str, Policy | Search] = field(default_factory=dict)
    """What is run with the second model's rewards; the first is the baseline that costs are compared with."""
    settings: Settings = field(default_factory=Settings)
    options: LoadOptions = field(default_factory=LoadOptions)
    """``n_seq_max`` is chosen by what the policies need."""
    helpers: Mapping[str, tuple[Opened, ...]] = field(default_factory=dict)
    """Further models that policies bring, by the policies' names; they stay the caller's."""
    label: str | None = None
    """Which of the guide's rewards is reported; None = the first."""

    def __post_init__(self) -> None:
        if PLAIN in self.policies:
            raise ConfigError("plain decoding is always run; name only guided policies")
        if len(self.prompts) < 2:
            raise ConfigError(f"the number of prompts is {len(self.prompts)}: a standard error needs at least 2")
        if bool(self.second_model) != bool(self.second_policies):
            raise ConfigError("a second model and the policies that it guides (--second-policy) need each other")

    @cached_property
    def insertion(self) -> InsertionConfig | None:
        """What is inserted into the model; reads the files' heads. Errors as :class:`otter_gguf.Otter`."""
        return check_files(self.model, self.otter).insertion

    def arms(self) -> list[Arm]:
        """Plain decoding first, then the policies, then those with the second model's rewards.

        Plain decoding runs on the base alone, so that what it is compared with pays for the insertion. From a merged
        file the base cannot be had alone: there it runs on the whole.
        """
        if self.second_model and self.insertion and not self.otter:
            raise ConfigError(
                f"{self.model} is merged: a second model's baseline needs the base alone (otter-gguf split)"
            )
        guided = "otter" if self.insertion else "base"
        arms = [Arm(PLAIN, "base" if self.otter else guided)]
        arms += [Arm(name, guided, policy, self.helpers.get(name, ())) for name, policy in self.policies.items()]
        second = [(name + SECOND, policy) for name, policy in self.second_policies.items()]
        return arms + [Arm(name, "second", policy) for name, policy in second]

    def header(self) -> dict[str, Any]:
        """What was run; a folder's texts are used again only under the same."""
        files = {name: getattr(self, name) for name in ("model", "otter", "second_model", "second_otter")}
        return {
            "format": FORMAT,
            "version": VERSION,
            **{name: file_identity(path) if path else None for name, path in files.items()},
            "arms": {arm.name: spec.format(arm.guidance) for arm in self.arms()},
            **asdict(self.settings),
            "options": {name: value for name, value in asdict(self.options).items() if name not in _NOT_OURS},
            "prompts": list(self.prompts),
        }


def file_identity(path: str) -> dict[str, Any]:
    """Name, size, and a digest of the first and the last MiB: tells a file from another of its name."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256()
        for begin in (0, max(0, size - _END)):
            file.seek(begin)
            digest.update(file.read(_END))
    return {"name": Path(path).name, "bytes": size, "sha256_of_ends": digest.hexdigest()}


@contextmanager
def _silent(stage: str, done: int, total: int) -> Iterator[Tick]:
    yield lambda: None


def evaluate(
    plan: Plan,
    judge: Judge | None = None,
    *,
    embedder: Embedder | None = None,
    folder: Path | None = None,
    force: bool = False,
    progress: Progress = _silent,
) -> Results:
    """Run a plan.

    Args:
        plan: What is run.
        judge: Reads the texts; should know nothing of what guided them. Without one there is the guide's reward alone.
        embedder: For coherence; None = the base's own final states, or rows of its token table without an insertion.
        folder: An existing one that keeps the generated texts (:data:`TEXTS`): an interrupted run goes on where it was.
        force: Forget the texts of another run there.
        progress: Shows how far it is.

    Raises:
        ConfigError: Options contradict each other, a policy lacks what it needs, or the folder is another run's.
        OtterError: As :class:`otter_gguf.Otter` for the models' files.
    """
    reward_column(plan.insertion.reward_labels if plan.insertion else (), plan.label)
    store = Store(folder / TEXTS if folder else None, plan.header(), force=force)
    arms = plan.arms()
    memory = _generate(plan, arms, store, progress)
    rows = [row for row in store if row.arm in {arm.name for arm in arms}]
    texts = _judged(plan, rows, judge, embedder, progress)
    return Results(
        header=plan.header(),
        judge=judge.name if judge else "none",
        embedder=embedder.name if embedder else _own_embedder_name(plan),
        memory=memory,
        arms=summarize(arms, texts, len(plan.prompts), memory),
    )


# ---- generating ------------------------------------------------------------------------------------------------


def _generate(plan: Plan, arms: Sequence[Arm], store: Store, progress: Progress) -> dict[str, Memory]:
    """Fill the store; what each arm occupies."""
    total = len(arms) * len(plan.prompts) * plan.settings.seeds
    with ExitStack() as stack:
        engines = {name: _open_engine(plan, name, arms, stack) for name in dict.fromkeys(arm.engine for arm in arms)}
        with progress("Generating", len(store.rows), total) as tick:
            run_arms(arms, engines, plan.prompts, plan.settings, store, tick)
        return {arm.name: _memory(engines[arm.engine], arm) for arm in arms}


def _open_engine(plan: Plan, name: str, arms: Sequence[Arm], stack: ExitStack) -> Engine:
    """The model of some arms, with as many sequences as the most demanding of them needs."""
    policies = [arm.guidance for arm in arms if arm.engine == name]

    def opened(model: str, otter: str | None, n_sequences: int) -> Opened:
        llm, memory = open_measured(model, otter, **asdict(replace(plan.options, n_seq_max=n_sequences)))
        return Opened(stack.enter_context(llm), memory)

    needed = max(map(sequences_needed, policies))
    if name != "second" or plan.second_model is None:
        return Engine(opened(plan.model, plan.otter if name == "otter" else None, needed))
    base = opened(plan.model, None, max(map(_without_candidates, policies)))
    return Engine(base, opened(plan.second_model, plan.second_otter, needed))


def _without_candidates(guidance: Policy | Search | None) -> int:
    """Sequences of a base whose candidates another model reads."""
    if isinstance(guidance, Search):
        return guidance.n_sequences
    return 1 + sum(auxiliary.model is None for auxiliary in guidance.auxiliary_streams()) if guidance is not None else 1


def _memory(engine: Engine, arm: Arm) -> Memory:
    """Of all models that an arm keeps open."""
    first, *others = (opened.memory for opened in (*engine.models, *arm.helpers))
    return sum(others, first)


# ---- reading and judging ---------------------------------------------------------------------------------------


def _judged(
    plan: Plan, rows: Sequence[Generation], judge: Judge | None, embedder: Embedder | None, progress: Progress
) -> list[Judged]:
    pairs = [(plan.prompts[row.prompt], row.text) for row in rows]
    own = embedder is None and plan.insertion is not None
    options = asdict(replace(plan.options, n_seq_max=1, hidden_states=own))
    with Otter(plan.model, otter=plan.otter, **options) as llm:
        with progress("Reading", 0, len(rows)) as tick:
            readings = read_texts(llm, pairs, plan.label, tick)
        embedder = embedder or (states_embedder(llm) if own else table_embedder(llm))
        with progress("Embedding", 0, len(rows)) as tick:
            near = coherences(embedder, plan.prompts, [(row.prompt, row.text) for row in rows], tick)
    texts = []
    with progress("Judging", 0, len(rows)) as tick:
        for row, reading, pair, cosine in zip(rows, readings, pairs, near.tolist(), strict=True):
            score = judge.score(*pair) if judge else math.nan
            texts.append(Judged(row, reading, score, diversity(row.text), cosine))
            tick()
    return texts


def _own_embedder_name(plan: Plan) -> str:
    return "final states" if plan.insertion else "token table"
