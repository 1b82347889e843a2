"""A training run on the toy that every process of a launcher executes; each writes what it ends with.

Arguments: output folder, rows in a batch of one process, then options of TrainConfig as name=value.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from otter_gguf.training import OtterTrainer, TrainConfig, tokenise_rows
from tests.training.toy import toy_otter, toy_rows, toy_tokenizer


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs and graded texts in turns, so that the batches of two processes hold different kinds."""
    return [
        row if index % 3 else {"prompt": row["prompt"], "completion": row["chosen"], "label": index % 2 == 0}
        for index, row in enumerate(toy_rows(count, seed))
    ]


def main(output: str, batch: str, *options: str) -> None:
    config = TrainConfig(
        output_dir=output,
        max_steps=6,
        per_device_train_batch_size=int(batch),
        per_device_eval_batch_size=int(batch),
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        save_steps=6,
        eval_strategy="steps",
        eval_steps=6,
        learning_rate=5e-3,
        # Without centering the gradient of a head's bias is rounding, which Adam makes steps of.
        center_rewards_coefficient=0.1,
        seed=3,
        **{name: ast.literal_eval(value) for name, value in (option.split("=") for option in options)},
    )
    model, tokenizer = toy_otter(), toy_tokenizer()
    run = OtterTrainer(model, config, tokenise_rows(rows(64, 0), tokenizer), tokenise_rows(rows(16, 1), tokenizer))
    run.train()
    tensors = {name: tensor.detach() for name, tensor in model.inserted_parameters().items()}
    save_file(tensors, Path(output) / f"rank{config.process_index}.safetensors")
    if config.process_index == 0:
        record = {"processes": config.world_size, "log": run.state.log_history}
        (Path(output) / "log.json").write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
