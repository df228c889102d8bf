"""Rollouts in vLLM, in the same process: a policy's language model as an engine that takes prompt embeddings and the policy's weights.

What makes a prompt (encoder, projector, embedding table) stays where it is; the engine gets the embeddings of each prompt once for its
whole group. It is started from a config alone, with weights that mean nothing, and gets the policy's before every collection, adapters
folded in: nothing is written, nothing goes over a socket. Its vocabulary is what the policy may write and nothing else - of a codec
language model the codec's slice and the stops, of a recogniser all but what is suppressed - so that a sampled token's probability is that
of the same distribution, and the head of a small vocabulary is small. On a GPU it sleeps while others compute (level 2: cache and weights
are given back); on the CPU vLLM cannot sleep, and its cache of ``cache_gib`` stays.

Sampler and trainer round differently, in bf16 by per cents: the engine's log-probabilities are kept, and ``tasks/token_policy.py`` measures
and corrects the difference.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rlspeech import log
from rlspeech.config_parts import Rollouts, Sampling
from rlspeech.models.audio_lm.generate import EncodedPrompts, Generation
from rlspeech.state import rng_state, set_rng_state
from rlspeech.types import UserError

# text models that take embeddings as they are and return logits as they are; others scale them, or have positions of their own
CLASSES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
OWN = "--set rollouts.engine=own"
QUIET = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


class VllmEngine:
    """Samples what ``LanguageModel.generate`` would, with the current weights of ``model``.

    Args:
        model: an ``AudioLM`` or a ``CodecLM``; its adapter's layers may be in it.
        half: compute in bf16, else in fp32.
        cfg: how much memory it may take.

    Raises:
        UserError: vLLM is not installed, this model is none for it, or it does not start.
    """

    sync_s = 0.0  # that the last ``refresh`` took

    def __init__(self, model: Any, half: bool, cfg: Rollouts) -> None:
        refuse(model)
        os.environ.update(
            QUIET if model.device.type == "cuda" else QUIET | {"TORCHDYNAMO_DISABLE": "1"}
        )  # a C++ compiler's minutes
        self.model, self.dtype = model, torch.bfloat16 if half else torch.float32
        self.rows, self.own = model.written()
        self.sleeps = model.device.type == "cuda"
        text = copy.deepcopy(model.net.config.get_text_config())
        tied = model.net.get_output_embeddings().weight is model.net.get_input_embeddings().weight
        text.update({"architectures": [CLASSES[text.model_type]], "vocab_size": len(self.rows)})
        text.update({"tie_word_embeddings": tied, "eos_token_id": None, "bos_token_id": None, "pad_token_id": None})
        how: dict[str, Any] = {"skip_tokenizer_init": True, "generation_config": "vllm", "load_format": "dummy"}
        how |= {"dtype": self.dtype, "enable_prompt_embeds": True, "logprobs_mode": "processed_logprobs"}
        how |= {"max_model_len": -1, "kv_cache_memory_bytes": int(cfg.cache_gib * 2**30)}
        how |= {
            "gpu_memory_utilization": 0.05
        }  # of a device on which others have taken most; the cache's size is given
        how |= {"enable_sleep_mode": self.sleeps, "enforce_eager": not self.sleeps, "disable_log_stats": True}
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:  # each process has its own
            how["distributed_executor_backend"] = "external_launcher"
        before = rng_state()  # it seeds every generator
        try:
            with TemporaryDirectory(prefix="rlspeech-") as folder, at_device(model.device):
                text.save_pretrained(folder)
                from vllm import LLM, SamplingParams

                self.llm: Any = LLM(folder, **how)
                # at exit it would leave a process group that is not its own, or is gone by then
                self.llm.llm_engine.engine_core._finalizer.atexit = False
                once = {"prompt_embeds": torch.zeros(2, text.hidden_size, dtype=self.dtype)}  # what fails does so here
                self.llm.generate(once, SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
        except (ValueError, RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[-1][:300]
            raise UserError(
                "vLLM does not start with this model", why, f"{OWN}, or another rollouts.cache_gib"
            ) from error
        finally:
            set_rng_state(before)
        self.longest = int(self.llm.llm_engine.model_config.max_model_len)
        if self.sleeps:
            self.llm.sleep(level=2)
        else:
            log.say(f"vLLM cannot sleep on the CPU: {cfg.cache_gib:g} GiB stay with it while others compute")

    def refresh(self) -> None:
        """Wake the engine and give it the policy's weights; what it kept of prompts under older ones is forgotten."""
        start = time.perf_counter()
        if self.sleeps:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._weights()})
        if self.sleeps:
            self.llm.wake_up(tags=["kv_cache"])
        self.llm.reset_prefix_cache()
        self.sync_s = time.perf_counter() - start

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """The language model's weights by vLLM's names."""
        table, head = (get() for get in (self.model.net.get_input_embeddings, self.model.net.get_output_embeddings))
        for name, weight in folded(decoder_of(self.model.net)):
            if not name.startswith("embed_tokens."):
                yield f"model.{name}", weight
        yield "model.embed_tokens.weight", self._cut(table.weight)
        if head.weight is not table.weight:
            yield "lm_head.weight", self._cut(head.weight)

    def _cut(self, table: Tensor) -> Tensor:
        whole = len(self.rows) == len(table)
        return table.detach() if whole else table.detach()[self.rows.to(table.device)]

    @torch.no_grad()
    def generate(
        self,
        prompts: EncodedPrompts,
        *,
        group: int = 1,
        sampling: Sampling | None = None,
        max_new_tokens: int | Sequence[int],
        seed: int | Sequence[int] = 0,
    ) -> Generation:
        """As ``LanguageModel.generate``, with the sampled tokens' log-probabilities; seeds give other draws than there.

        Raises:
            UserError: a prompt that leaves no room for an answer.
        """
        from vllm import SamplingParams

        given = [x.to("cpu", self.dtype) for x in self.model.embed(prompts)]
        left = [self.longest - len(x) for x in given]
        if min(left) < 1:
            why = f"a prompt takes {self.longest - min(left)} positions, the engine has room for {self.longest}"
            raise UserError("a prompt is too long for the engine", why, "--set rollouts.cache_gib=N, or shorter clips")
        warmth = {"temperature": 0.0}
        if sampling is not None:
            warmth = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or -1}
        stops = torch.isin(self.own, torch.tensor(self.model.stops)).nonzero()[:, 0].tolist()
        how: dict[str, Any] = {"n": group, "stop_token_ids": stops, "detokenize": False, **warmth}
        how |= {"logprobs": 0, "flat_logprobs": True}
        count = len(given)
        most = [max_new_tokens] * count if isinstance(max_new_tokens, int) else max_new_tokens
        seeds = [seed + i * group for i in range(count)] if isinstance(seed, int) else seed
        asked = [SamplingParams(max_tokens=min(m, n), seed=s, **how) for m, n, s in zip(most, left, seeds, strict=True)]
        self.refresh()
        with torch.random.fork_rng(devices=[]):
            made = self.llm.generate([{"prompt_embeds": x} for x in given], asked, use_tqdm=False)
        if self.sleeps:
            self.llm.sleep(level=2)
        return self._collected([row for prompt in made for row in prompt.outputs])

    def _collected(self, rows: list[Any]) -> Generation:
        """vLLM's rows as ours; where several of its tokens are one of ours, the probability of that one is not known (nan)."""
        ids = [torch.tensor(row.token_ids) for row in rows]
        logp = [torch.tensor(row.logprobs.logprobs) for row in rows]
        alone = self.own.bincount()[self.own] == 1
        mask = pad_sequence([torch.ones(len(i), dtype=torch.bool) for i in ids], batch_first=True)
        logp = [x.where(alone[i], torch.nan) for x, i in zip(logp, ids, strict=True)]
        own = pad_sequence([self.own[i] for i in ids], batch_first=True, padding_value=self.model.pad)
        finished = torch.tensor([row.finish_reason == "stop" for row in rows])
        return Generation(own, mask, finished, pad_sequence(logp, batch_first=True, padding_value=torch.nan))


def refuse(model: Any) -> None:
    """Raise ``UserError`` where vLLM is not installed, or cannot do what this model does."""
    kind = model.net.config.get_text_config().model_type
    what, why = "vLLM cannot sample from this model", ""
    if model.seq2seq:
        why = "an encoder-decoder attends to its audio, and vLLM takes prompt embeddings of decoders alone"
    elif kind not in CLASSES:
        why = f"its language model is a {kind}; those that take embeddings as they are: {', '.join(CLASSES)}"
    elif model.begin_suppress_tokens:
        why = "tokens of its generation config may not begin an answer, which vLLM does not know; suppress=none takes them out"
    elif getattr(model.net.get_output_embeddings(), "bias", None) is not None:
        why = "its head has a bias, which vLLM drops"
    if why:
        raise UserError(what, why, OWN)
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM is not installed", "", f"pip install 'rlspeech[vllm]', or {OWN}")


def at_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def decoder_of(net: Any) -> Any:
    """The language model below the head: embedding table, layers, norm."""
    inner = net.get_decoder()
    return inner if hasattr(inner, "layers") else inner.model


def folded(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of a model by the names that they have without adapters, each with its adapter's product added."""
    for name, weight in net.named_parameters():
        owner, found, leaf = name.rpartition(".base_layer.")
        if ".lora_" in name:
            continue
        layer: Any = net.get_submodule(owner) if found else None
        if layer is not None and leaf == "weight":
            yield f"{owner}.{leaf}", sum((layer.get_delta_weight(a) for a in layer.active_adapters), weight.detach())
        else:
            yield name.replace(".base_layer.", "."), weight.detach()


def truncated_weights(
    trained: Tensor, sampled: Tensor, mask: Tensor, cap: float | None
) -> tuple[Tensor, dict[str, float]]:
    """Importance weights w = min(pi_trained / pi_sampled, cap) of tokens (N, S) that an engine sampled, and how far the two are apart.

    The surrogate is an expectation over the policy, sampled from the engine, whose numbers differ: w makes up for it, cut off at ``cap``
    (truncated importance sampling, Ionides 2008; for engines Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training", and TRL's ``vllm_importance_sampling_correction``). Without a cap every weight is 1, and the gap is measured.

    Args:
        trained, sampled: (N, S) log-probabilities; where the engine does not know (nan) the weight is 1.
        mask: (N, S) bool, tokens that count.
    """
    known = mask & sampled.isfinite()
    gap = torch.where(known, trained - sampled, 0.0)
    ratio, count = gap.exp(), known.sum().clamp_min(1)
    weight = torch.ones_like(ratio) if cap is None else ratio.clamp_max(cap)
    noted = {"logp_gap": gap.abs().sum() / count, "logp_gap_max": gap.abs().max(), "weight": weight[known].mean()}
    noted["capped"] = (known & (ratio > (cap or torch.inf))).sum() / count
    return weight, {f"rollout/{name}": float(value) for name, value in noted.items()}
