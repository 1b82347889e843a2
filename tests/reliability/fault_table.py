"""The planted faults: each a mistake that somebody could make, and the tests that must notice it.

A fault is one replacement in one file. It changes what is computed or what is refused, never whether the file can be
imported or compiled: a mistake that stops everything needs no test to be seen.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """One mistake."""

    name: str
    file: str
    """From the root of the repository."""
    old: str
    """Text that stands in the file exactly once."""
    new: str
    tests: tuple[str, ...]
    """Arguments of pytest: files, or tests in them."""


_PARITY = ("tests/native/test_torch_parity.py", "tests/native/test_architectures.py")
_ARCHITECTURES = ("tests/native/test_architectures.py",)
_REFERENCE = ("tests/training/test_model.py", "tests/training/test_forms.py")

_GUIDANCE = "otter_gguf/guidance"
_TRAINING = "otter_gguf/training"

GUIDANCE = (
    Fault(
        "ARGS: sign of the reward",
        f"{_GUIDANCE}/args.py",
        "candidates.logits + np.float32(self.weight) * rewards",
        "candidates.logits - np.float32(self.weight) * rewards",
        ("tests/guidance/test_args.py",),
    ),
    Fault(
        "ARGS: centred the wrong way",
        f"{_GUIDANCE}/args.py",
        "rewards - rewards.mean()",
        "rewards + rewards.mean()",
        ("tests/guidance/test_args.py",),
    ),
    Fault(
        "ARGS: log-probabilities without the log-sum-exp",
        f"{_GUIDANCE}/args.py",
        "scores - np.float32(candidates.state.log_sum_exp)",
        "scores - np.float32(0)",
        ("tests/guidance/test_args.py",),
    ),
    Fault(
        "RAD: the upper bound is ignored",
        f"{_GUIDANCE}/rad.py",
        ".clip(self.low, self.high)",
        ".clip(self.low, None)",
        ("tests/guidance/test_rad.py",),
    ),
    Fault(
        "RAD: inverse inverted",
        f"{_GUIDANCE}/rad.py",
        "if self.inverse:",
        "if not self.inverse:",
        ("tests/guidance/test_rad.py",),
    ),
    Fault(
        "Vocabulary: orders of cut and bonus exchanged",
        f"{_GUIDANCE}/vocabulary.py",
        'if self.order == "cut_first":',
        'if self.order != "cut_first":',
        ("tests/guidance/test_vocabulary_policy.py",),
    ),
    Fault(
        "Ensemble: caution rewards disagreement",
        f"{_GUIDANCE}/ensemble.py",
        "weighted.mean(axis=1) - np.float32",
        "weighted.mean(axis=1) + np.float32",
        ("tests/guidance/test_ensemble.py",),
    ),
    Fault(
        "Ensemble: mean not divided by the weights",
        f"{_GUIDANCE}/ensemble.py",
        "weighted.sum(axis=1) / weights.sum()",
        "weighted.sum(axis=1) / len(weights)",
        ("tests/guidance/test_ensemble.py",),
    ),
    Fault(
        "DExperts: expert and anti-expert exchanged",
        f"{_GUIDANCE}/dexperts.py",
        "(plus - minus)",
        "(minus - plus)",
        ("tests/guidance/test_dexperts.py",),
    ),
    Fault(
        "DExperts: nucleus one token too small",
        f"{_GUIDANCE}/dexperts.py",
        "np.cumsum(probabilities) - probabilities",
        "np.cumsum(probabilities)",
        ("tests/guidance/test_dexperts.py",),
    ),
    Fault(
        "BestOfN: the worst of N",
        f"{_GUIDANCE}/best_of_n.py",
        "np.argmax(rewards)",
        "np.argmin(rewards)",
        ("tests/guidance/test_best_of_n.py",),
    ),
    Fault(
        "ChunkBeam: keeps the worst beams",
        f"{_GUIDANCE}/chunk_beam.py",
        "np.argsort(-np.asarray(rewards)",
        "np.argsort(np.asarray(rewards)",
        ("tests/guidance/test_chunk_beam.py",),
    ),
    Fault(
        "SpeculativeRejection: keeps what is below the quantile",
        f"{_GUIDANCE}/speculative_rejection.py",
        "if reward >= cutoff]",
        "if reward <= cutoff]",
        ("tests/guidance/test_speculative_rejection.py",),
    ),
    Fault(
        "Threshold: a reward at the limit is refused",
        f"{_GUIDANCE}/threshold.py",
        "work.reward(branch, self.label) >= self.limit",
        "work.reward(branch, self.label) > self.limit",
        ("tests/guidance/test_threshold.py",),
    ),
    Fault(
        "Gated: guides where the base is sure",
        f"{_GUIDANCE}/gated.py",
        "not self._entropy(state) >= self.entropy",
        "self._entropy(state) >= self.entropy",
        ("tests/guidance/test_gated.py",),
    ),
)

GENERATION = (
    Fault(
        "Shift: the cells' place is crossed out after they have moved",
        "otter_gguf/context/streams.py",
        "        stream.n_exact = n_keep\n        count = (len(stream.tokens) - n_keep) // 2\n"
        "        first, *siblings = stream.sequences\n",
        "        count = (len(stream.tokens) - n_keep) // 2\n        first, *siblings = stream.sequences\n"
        "        self.context.sequence_remove(first, n_keep, n_keep + 1)\n        stream.n_exact = n_keep\n",
        ("tests/test_interrupts.py",),
    ),
    Fault(
        "Engine: a long prompt is fed at once beside running texts",
        "otter_gguf/engine/engine.py",
        "in_pieces = self._is_busy() or ",
        "in_pieces = ",
        ("tests/test_engine.py",),
    ),
    Fault(
        "Engine: a text whose step was interrupted goes on",
        "otter_gguf/engine/engine.py",
        "broken = [job for job in self._in_step if job.has_begun]",
        "broken: list[Job] = []",
        ("tests/test_interrupts.py",),
    ),
    Fault(
        "Engine: a cancelled text keeps its cells",
        "otter_gguf/engine/engine.py",
        "self._end(handle, keep=False)",
        "self._end(handle, keep=True)",
        ("tests/test_engine.py",),
    ),
    Fault(
        "Turns: the model of a call is not taken in turn",
        "otter_gguf/context/turns.py",
        "with self._lock:",
        "if True:",
        ("tests/test_turns.py",),
    ),
    Fault(
        "Isolation: the answer to any question is taken",
        "otter_gguf/isolation/wire.py",
        "length > _MAX_LENGTH or found != number",
        "length > _MAX_LENGTH",
        ("tests/test_isolation.py",),
    ),
    Fault(
        "Score: the first token's reward in the place of the last's",
        "otter_gguf/scoring.py",
        "float(self.rewards[-1, 0])",
        "float(self.rewards[0, 0])",
        ("tests/test_model.py",),
    ),
    Fault(
        "Streams: the winner's cell copied off by one position",
        "otter_gguf/context/streams.py",
        "self.context.sequence_copy(source, sequence, position, position + 1)",
        "self.context.sequence_copy(source, sequence, position + 1, position + 2)",
        ("tests/guidance/test_args.py",),
    ),
    Fault(
        "Streams: a fed part off by one position",
        "otter_gguf/context/streams.py",
        "np.arange(b, b + n, dtype=np.int32)",
        "np.arange(b + 1, b + 1 + n, dtype=np.int32)",
        ("tests/test_model.py",),
    ),
    Fault(
        "Streams: logits of another stream's row",
        "otter_gguf/context/streams.py",
        "(_NO_LOGITS, -1) if logits is None else (logits[row], row)",
        "(_NO_LOGITS, -1) if logits is None else (logits[0], row)",
        ("tests/test_batch.py",),
    ),
    Fault(
        "Streams: shifted cells taken for a fresh prompt's",
        "otter_gguf/context/streams.py",
        "stream.n_exact = n_keep",
        "stream.n_exact = None",
        ("tests/test_context_shift.py",),
    ),
    Fault(
        "Session: vocabularies compared by the length of tokens",
        "otter_gguf/context/session.py",
        "if theirs != ours:",
        "if len(theirs) != len(ours):",
        ("tests/test_bad_arguments.py",),
    ),
    Fault(
        "Log-probabilities: not normalised",
        "otter_gguf/engine/text.py",
        "self._normalized(self._logits).tolist()",
        "self._logits.tolist()",
        ("tests/test_logprobs.py",),
    ),
    Fault(
        "max_tokens: one too many",
        "otter_gguf/engine/text.py",
        "len(self.tokens) >= request.max_tokens:",
        "len(self.tokens) > request.max_tokens:",
        ("tests/test_model.py",),
    ),
    Fault(
        "Stop strings: the first character is not held back",
        "otter_gguf/text.py",
        "default=0)), 0, -1):",
        "default=0)), 1, -1):",
        ("tests/test_text.py",),
    ),
    Fault(
        "Terminal: C1 control characters pass",
        "otter_gguf/text.py",
        r"\x7f-\x9f",
        r"\x7f-\x8f",
        ("tests/test_text.py",),
    ),
    Fault(
        "Saved context: the end of a tensor is not in the identity",
        "otter_gguf/context/state.py",
        "yield data[-_SAMPLE:]",
        "yield data[:_SAMPLE]",
        ("tests/test_state.py",),
    ),
    Fault(
        "Verification: NaN and -0 compared by value",
        "otter_gguf/verify.py",
        "differs = ours.view(np.uint32) != stock.view(np.uint32)",
        "differs = ours != stock",
        ("tests/test_verify.py",),
    ),
    Fault(
        "Diversity: repetition without ARGS's 1",
        "otter_gguf/evaluation/metrics.py",
        "len(set(grams)) / (len(grams) + 1))",
        "len(set(grams)) / max(len(grams), 1))",
        ("tests/evaluation/test_metrics.py",),
    ),
    Fault(
        "Cross-entropy: sign",
        "otter_gguf/evaluation/metrics.py",
        "return -float(np.mean(log_probabilities",
        "return float(np.mean(log_probabilities",
        ("tests/evaluation/test_metrics.py",),
    ),
)

TRAINING = (
    Fault(
        "Prefix loss: chosen and rejected exchanged",
        f"{_TRAINING}/losses.py",
        "ahead = pairs.chosen - pairs.rejected",
        "ahead = pairs.rejected - pairs.chosen",
        ("tests/training/test_losses.py",),
    ),
    Fault(
        "Prefix loss: the whole margin at every length",
        f"{_TRAINING}/losses.py",
        "margin[:, None] * steps / lengths[:, None]",
        "margin[:, None] * torch.ones_like(steps)",
        ("tests/training/test_losses.py",),
    ),
    Fault(
        "Pairs: the token before the last",
        f"{_TRAINING}/losses.py",
        "steps, length[:, None] - 1)",
        "steps, length[:, None] - 2)",
        ("tests/training/test_losses.py",),
    ),
    Fault(
        "Graded loss: weights that do not sum to 1",
        f"{_TRAINING}/losses.py",
        "return 2 * (step * inside)",
        "return (step * inside)",
        ("tests/training/test_losses.py",),
    ),
    Fault(
        "Centring: of the difference",
        f"{_TRAINING}/losses.py",
        "(chosen + rejected).square()",
        "(chosen - rejected).square()",
        ("tests/training/test_losses.py",),
    ),
    Fault(
        "Steps: padding counts",
        f"{_TRAINING}/losses.py",
        "return (losses * mask).sum(dim=1)",
        "return losses.sum(dim=1)",
        ("tests/training/test_losses.py", "tests/training/test_objectives.py"),
    ),
    Fault(
        "Objective: the reward before the last token's",
        f"{_TRAINING}/objectives.py",
        'final = _at(own, batch["length"][rows] - 1)',
        'final = _at(own, batch["length"][rows] - 2)',
        ("tests/training/test_objectives.py",),
    ),
    Fault(
        "Partial norm: no epsilon",
        f"{_TRAINING}/modules.py",
        "keepdim=True) + self.epsilon)",
        "keepdim=True))",
        ("tests/training/test_modules.py",),
    ),
    Fault(
        "Partial norm: over h and h'",
        f"{_TRAINING}/modules.py",
        "h = x.detach()[..., : self.base_columns].to(dtype)  # (..., d)\n        scale = torch.rsqrt(h.pow(2)",
        "h = x.detach().to(dtype)\n        scale = torch.rsqrt(h.pow(2)",
        ("tests/training/test_modules.py",),
    ),
    Fault(
        "Widened map: inserted rows do not read the base's columns",
        f"{_TRAINING}/modules.py",
        "inserted_product(self.otter.weight, h, inserted, self.otter.bias))",
        "inserted_product(self.otter.weight, 0 * h, inserted, self.otter.bias))",
        _REFERENCE,
    ),
    Fault(
        "Head: calibration without scale",
        f"{_TRAINING}/modules.py",
        "return raw * self.scale + self.shift",
        "return raw + self.shift",
        ("tests/training/test_modules.py", *_REFERENCE),
    ),
    Fault(
        "Vocabulary head: no baseline for candidates",
        f"{_TRAINING}/vocabulary.py",
        "(rows @ direction[..., None]).squeeze(-1) + baseline",
        "(rows @ direction[..., None]).squeeze(-1) + 0 * baseline",
        ("tests/training/test_vocabulary.py",),
    ),
    Fault(
        "Unfrozen base",
        f"{_TRAINING}/model.py",
        "base_model.requires_grad_(False)",
        "base_model.requires_grad_(True)",
        ("tests/training/test_model.py", "tests/training/test_trainer.py"),
    ),
    Fault(
        "Attention: inserted heads before the base's",
        f"{_TRAINING}/attention.py",
        "torch.cat(states, dim=2)",
        "torch.cat(states[::-1], dim=2)",
        ("tests/training/test_model.py",),
    ),
    Fault(
        "Initialisation: inserted heads modelled on the next head",
        f"{_TRAINING}/layout.py",
        "[head % base.n_head_kv for head",
        "[(head + 1) % base.n_head_kv for head",
        ("tests/training/test_insert.py",),
    ),
    Fault(
        "Initialisation: heads of the wrong variance",
        f"{_TRAINING}/modules.py",
        "(weight.shape[1] + 1) ** -0.5",
        "(weight.shape[1] + 1) ** -1.0",
        ("tests/training/test_insert.py",),
    ),
    Fault(
        "Calibration: weights are not scaled",
        f"{_TRAINING}/calibration.py",
        "weight.div_(deviation[:, None])",
        "weight.div_(1.0)",
        ("tests/training/test_calibration.py",),
    ),
    Fault(
        "Calibration: vocabulary heads do not follow",
        f"{_TRAINING}/vocabulary.py",
        "self.otter.weight.div_(deviation)",
        "self.otter.weight.mul_(deviation)",
        ("tests/training/test_calibration.py", "tests/training/test_vocabulary.py"),
    ),
    Fault(
        "Distillation: the weight of the loss is ignored",
        f"{_TRAINING}/distillation.py",
        "return self.config.weight * loss, {",
        "return loss, {",
        ("tests/training/test_distillation.py",),
    ),
    Fault(
        "Adapter: values that are no numbers are loaded",
        f"{_TRAINING}/checkpoint.py",
        "not bool(torch.isfinite(tensor).all())",
        "bool(torch.isnan(tensor).all())",
        ("tests/training/test_checkpoint.py",),
    ),
)

FILES = (
    Fault(
        "Sidecar: a missing norm is not noticed",
        "otter_gguf/tensor_shapes.py",
        'problems = [f"{name} is missing" for name in expected if name not in found]',
        'problems = [f"{name} is missing" for name in expected if name not in found and "norm" not in name]',
        ("tests/gguf/test_sidecar.py",),
    ),
    Fault(
        "Sidecar: runs on a base of another fingerprint",
        "otter_gguf/gguf/sidecar.py",
        "if wanted.fingerprint != found.fingerprint:",
        "if wanted.fingerprint[:0] != found.fingerprint[:0]:",
        ("tests/gguf/test_fingerprint.py", "tests/gguf/test_sidecar.py"),
    ),
    Fault(
        "Fingerprint: of a norm only the first half",
        "otter_gguf/gguf/fingerprint.py",
        "digest.update(base.tensor_data(tensor.name))",
        "digest.update(base.tensor_data(tensor.name)[: tensor.n_bytes // 2])",
        ("tests/gguf/test_fingerprint.py",),
    ),
    Fault(
        "Checksums: keys of heads do not count",
        "otter_gguf/gguf/checksums.py",
        "key.startswith(keys.PREFIX)",
        'key.startswith(keys.PREFIX) and ".head." not in key',
        ("tests/gguf/test_checksums.py",),
    ),
    Fault(
        "Writer: a skipped padding",
        "otter_gguf/gguf/writer.py",
        "file.write(bytes(encoding.padding(written)))",
        'file.write(b"")',
        ("tests/gguf/test_writer.py",),
    ),
    Fault(
        "Writer: a whole block of padding where none is needed",
        "otter_gguf/gguf/encoding.py",
        "return -size % alignment",
        "return alignment - size % alignment",
        ("tests/gguf/test_writer.py",),
    ),
    Fault(
        "Writer: an existing file is replaced unasked",
        "otter_gguf/gguf/atomic.py",
        "    if not force:",
        "    if force:",
        ("tests/gguf/test_writer.py",),
    ),
    Fault(
        "Merge: the second part of the inserted data not aligned",
        "otter_gguf/gguf/merge.py",
        "offset += tensor.n_bytes + padding(tensor.n_bytes, base.alignment)",
        "offset += tensor.n_bytes",
        ("tests/gguf/test_merge.py",),
    ),
    Fault(
        "Loading: the base is not checked",
        "otter_gguf/loading.py",
        "_native.check_base(base.metadata_file)  #",
        "base.metadata_file.keys  #",
        ("tests/gguf/test_hostile.py", "tests/test_model.py"),
    ),
    Fault(
        "Converter: rotary rows transposed",
        "converters/recipes.py",
        "halves = rows.reshape(-1, 2, head_size // 2, rows.shape[1])",
        "halves = rows.reshape(-1, head_size // 2, 2, rows.shape[1])",
        ("tests/converters/test_adapter.py", "tests/native/test_torch_parity.py"),
    ),
    Fault(
        "Converter: gate and up exchanged",
        "otter_gguf/gguf/recipes.py",
        "_stacked(ffn.inputs, [(n_ff, 0)]",
        "_stacked(ffn.inputs[::-1], [(n_ff, 0)]",
        _PARITY,
    ),
    Fault(
        "Converter: blocks that must be zero are not looked at",
        "converters/blocks.py",
        "if tensor.zero_right:",
        "if tensor.zero_right and tensor.zero_below:",
        ("tests/converters/test_widened.py",),
    ),
    Fault(
        "Importance: sums not divided by calls",
        "otter_gguf/quantization/importance.py",
        "sums / np.float32(max(calls, 1))",
        "sums / np.float32(1)",
        ("tests/test_quantization.py",),
    ),
)

NATIVE = (
    Fault(
        "Attention: missing square root in the scale",
        "csrc/bridge/inserted_graph.cpp",
        "1.0f / sqrtf(float(n_embd_head_k))",
        "1.0f / float(n_embd_head_k)",
        _PARITY,
    ),
    Fault(
        "Long prompts: both halves of a map multiply with its first columns",
        "csrc/bridge/inserted_graph.cpp",
        "w->nb[1], ggml_row_size(w->type, a->ne[0]));",
        "w->nb[1], 0*ggml_row_size(w->type, a->ne[0]));",
        _PARITY,
    ),
    Fault(
        "Initial state: the slice's first channel is ignored",
        "csrc/bridge/inserted_graph.cpp",
        "part.spec.state_offset * sizeof(float)",
        "0 * sizeof(float)",
        _PARITY,
    ),
    Fault(
        "Rope: a layer too early is left without it",
        "csrc/bridge/inserted_part.cpp",
        "uint32_t(il + 1) % hparams.n_no_rope_layer_step",
        "uint32_t(il) % hparams.n_no_rope_layer_step",
        _ARCHITECTURES,
    ),
    Fault(
        "Partial norm: no epsilon",
        "csrc/ops/block_ops.cpp",
        "return (x - m) * (x - m); }) + norm.eps)",
        "return (x - m) * (x - m); }) + 0 * norm.eps)",
        ("tests/native/test_torch_parity.py",),
    ),
    Fault(
        "Fused FFN: the activation on the wrong half",
        "csrc/ops/block_ops.cpp",
        "out[j] = (block.gelu_ffn ? gelu(out[j]) : silu(out[j])) * up[j];",
        "out[j] = (block.gelu_ffn ? gelu(up[j]) : silu(up[j])) * out[j];",
        _PARITY,
    ),
    Fault(
        "Fused output map: no residual scale",
        "csrc/ops/block_ops.cpp",
        "o == nullptr ? block.scale : block.scale * norm_statistic",
        "o == nullptr ? 1.0f : block.scale * norm_statistic",
        _ARCHITECTURES,
    ),
    Fault(
        "Vocabulary head: no baseline",
        "csrc/engine/heads.cpp",
        "raw += query[n_rank];",
        "raw += 0.0f*query[n_rank];",
        ("tests/native/test_vocabulary.py",),
    ),
    Fault(
        "Heads: a vocabulary head counted as one scalar",
        "csrc/engine/heads.cpp",
        "row += head.n_outputs();",
        "row += head.n_labels;",
        ("tests/native/test_vocabulary.py",),
    ),
    Fault(
        "Scoring: every chunk at the text's beginning",
        "csrc/engine/context_text.cpp",
        "std::iota(positions.begin(), positions.end(), position + i);",
        "std::iota(positions.begin(), positions.end(), position + 0*i);",
        ("tests/native/test_context.py", "tests/native/test_cache.py"),
    ),
    Fault(
        "Log-probabilities: of the token itself",
        "csrc/engine/context_text.cpp",
        "double(row[tokens[j + 1]])",
        "double(row[tokens[j]])",
        ("tests/native/test_cache.py",),
    ),
    Fault(
        "A call that fails leaves its tokens in the cache",
        "csrc/engine/context_decode.cpp",
        "std::min(it->second, batch.positions[i]);",
        "batch.positions[i] + 1;",
        ("tests/native/test_interrupt.py", "tests/native/test_cache.py"),
    ),
    Fault(
        "Entropy: sign",
        "csrc/engine/logits.cpp",
        "std::log(sums.z) - sums.weighted / sums.z",
        "std::log(sums.z) + sums.weighted / sums.z",
        ("tests/native/test_logits.py",),
    ),
    Fault(
        "Sampler: penalties of the prompt are forgotten",
        "csrc/engine/sampler.cpp",
        "    if (history.penalties) {\n        history.seen.insert(token);",
        "    if (history.penalties && !prompt) {\n        history.seen.insert(token);",
        ("tests/native/test_sampler.py",),
    ),
    Fault(
        "Cache: the border of a window, one position too lenient",
        "csrc/bridge/memory.cpp",
        "llama_pos(ctx->get_model().hparams.n_swa) + 1;",
        "llama_pos(ctx->get_model().hparams.n_swa) + 2;",
        ("tests/native/test_window_border.py",),
    ),
    Fault(
        "Cache: only the keys' blocks are looked at",
        "csrc/bridge/memory.cpp",
        'check("type_v", type_v, "values", hparams.n_embd_head_v(il));',
        'check("type_v", type_k, "values", hparams.n_embd_head_v(il));',
        ("tests/native/test_cache_types.py",),
    ),
    Fault(
        "Outputs: memory that a view reads is taken a row too late",
        "csrc/bridge/outputs.cpp",
        "std::max(size_t(n_outputs), size_t(ctx.n_seq_max()))",
        "std::max(size_t(n_outputs) / 2, size_t(ctx.n_seq_max()))",
        ("tests/native/test_views.py",),
    ),
    Fault(
        "Texts: the stack of a word without the gaps around it",
        "csrc/bridge/tokenizer.cpp",
        "return 3 * n * stack_a_character;",
        "return n * stack_a_character / 16;",
        ("tests/native/test_long_texts.py",),
    ),
    Fault(
        "Reader: eight bytes behind the end of the file",
        "csrc/gguf/gguf_parser.cpp",
        'if (n_bytes > end - pos) {\n        file.fail(cat("file ends',
        'if (n_bytes > end + 8 - pos) {\n        file.fail(cat("file ends',
        ("tests/gguf/test_reader.py", "tests/gguf/test_hostile.py"),
    ),
    Fault(
        "Log: the errors of all threads together",
        "csrc/engine/log.cpp",
        "thread_local log_errors * own_errors",
        "static log_errors * own_errors",
        ("tests/native/test_log.py",),
    ),
    Fault(
        "Finite check: Q6_K's scale sought elsewhere",
        "csrc/gguf/finite.cpp",
        "return { 208, 1 };",
        "return { 200, 1 };",
        ("tests/gguf/test_reader.py", "tests/gguf/test_sidecar.py", "tests/gguf/test_hostile.py"),
    ),
)

FAULTS = (*GUIDANCE, *GENERATION, *TRAINING, *FILES, *NATIVE)
