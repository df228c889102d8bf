"""One adapter over transformers' audio LLMs: encode a clip once, write transcripts from it, compute their log-probabilities.

``generate(input_features=...)`` of the library runs the encoder on every copy of a clip, and Voxtral's mixes chunks of different clips
when it repeats them. Here encoder and projector run once a clip and their vectors are kept (``EncodedPrompts``); prompts are made of them
where they are needed, so that a reference model with another embedding table, or the next step of training, sees its own. The training
path is one plain forward over prompt and transcript, padded on the right (under a causal mask padding there changes nothing), with the
head on the transcript's positions only: the logits of all positions of a 150 000-word vocabulary would be most of the memory, and not
every model takes ``logits_to_keep``.

``load_audio_lm`` and ``save_audio_lm`` read and write it as a folder in transformers' layout.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress as ignoring
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rlspeech.log import warn
from rlspeech.models.audio_lm.families import Request, family_of
from rlspeech.models.audio_lm.generate import EncodedPrompts, LanguageModel, load_lm, right_padded, save_lm
from rlspeech.models.folder import Precision, dtype_of, load_net, pretrained

Part = Literal["encoder", "projector", "language"]
Phase = Literal["encode", "rollout", "reward", "update", "all"]
Suppress = Literal["keep", "allow_empty", "none"]
# settings of a generation config that no policy here has: the first matter only where it samples
SAMPLED = "temperature top_p top_k top_h min_p typical_p epsilon_cutoff eta_cutoff".split()
SEARCH = (
    "do_sample num_beams num_beam_groups diversity_penalty length_penalty penalty_alpha repetition_penalty no_repeat_ngram_size "
    "encoder_repetition_penalty encoder_no_repeat_ngram_size exponential_decay_length_penalty bad_words_ids sequence_bias "
    "constraints force_words_ids forced_bos_token_id forced_eos_token_id min_length min_new_tokens guidance_scale watermarking_config "
    "return_timestamps no_speech_threshold logprob_threshold compression_ratio_threshold"
).split()
FACTORS = re.compile("temperature|_p$|penalty|beam|scale")  # of those that do nothing at 1; the others do nothing at 0

# what a processor raises that does not load
UNLOADABLE = (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError)
TASK = "asr"


class AudioLM(LanguageModel):
    """A transformers audio LLM as a policy over transcripts.

    Args:
        net: the model.
        tokenizer: its tokenizer.
        processor: its processor, where it loads.
        extractor: its feature extractor, where it loads; none: the processor's.
        max_s: longest clip in seconds, where it is known better than by the family. What is longer is cut off.
        train_encoder: encoder and projector are trained too; otherwise they are frozen and shared by copies of the model.
        suppress: what the generation config's lists of suppressed tokens are to the policy: "keep", all of both; "allow_empty", all but
            the stop tokens, so that a transcript may be empty; "none", neither.
        encoder_cache_mib: most host memory for encoded clips (``encode``), in MiB.

    The generation config is changed to what the policy does, so that transformers' ``generate`` does the same with what is saved:
    ``overridden`` holds the settings that were taken out of it.
    """

    def __init__(
        self,
        net: Any,
        tokenizer: Any,
        processor: Any = None,
        extractor: Any = None,
        *,
        max_s: float | None = None,
        train_encoder: bool = False,
        suppress: Suppress = "keep",
        encoder_cache_mib: float = 0,
    ) -> None:
        super().__init__()
        self.net = net
        self.tokenizer, self.processor = tokenizer, processor
        self.extractor = extractor if extractor is not None else getattr(processor, "feature_extractor", None)
        self.model_type = str(net.config.model_type)
        self.family = family_of(self.model_type)(net, tokenizer, processor, self.extractor)
        self.sample_rate, self.seq2seq = self.family.sample_rate, self.family.seq2seq
        self.max_s = float(max_s or self.family.max_s)
        self.train_encoder = train_encoder
        self.encoder_cache = EncoderCache(0 if train_encoder or not self.family.fixed_window else encoder_cache_mib)
        # position tables that are no weights
        self._fixed = {name for name, p in net.named_parameters() if not p.requires_grad}
        self.stops, self.pad = self._special_ids()
        self.overridden = self._settle(suppress)
        encoders, projectors = (self.family.encoder, self.family.projector) if train_encoder else ((), ())
        self.lora_targets = self.lora_patterns((*self.family.language, *encoders), projectors)
        for module in self.frozen_modules():
            module.requires_grad_(False)

    def shared(self) -> Sequence[Any]:
        return (*self.frozen_modules(), self.tokenizer, self.processor, self.extractor, self.encoder_cache)

    # -- parts ---------------------------------------------------------------------------------------------------------------

    def modules_of(self, part: Part) -> list[nn.Module]:
        """The modules of a part."""
        return [self.net.get_submodule(name) for name in getattr(self.family, part)]

    def frozen_modules(self) -> list[nn.Module]:
        """What is not trained, whatever is: encoder and projector, unless ``train_encoder``."""
        return [] if self.train_encoder else [*self.modules_of("encoder"), *self.modules_of("projector")]

    def unfreeze(self) -> None:
        """Train every weight that may be trained."""
        self.net.requires_grad_(True)
        for name, p in self.net.named_parameters():
            if name in self._fixed:
                p.requires_grad_(False)
        for module in self.frozen_modules():
            module.requires_grad_(False)

    def park(self, phase: Phase, device: torch.device | str) -> None:
        """Put what a phase needs onto ``device`` and the rest into the host's memory.

        Args:
            phase: encode needs encoder and projector; rollout and update the language model, an update of a trained encoder all; reward
                nothing; "all" everything.
            device: where the phase runs.
        """
        encodes = phase in {"encode", "all"} or (phase == "update" and self.train_encoder)
        writes = phase in {"rollout", "update", "all"}
        needs: dict[Part, bool] = {"encoder": encodes, "projector": encodes, "language": writes}
        for part, needed in needs.items():
            for module in self.modules_of(part):
                module.to(device if needed else "cpu")

    def _special_ids(self) -> tuple[list[int], int]:
        """Stop ids (the one that references end with first) and padding id."""
        given = self.net.generation_config
        listed = given.eos_token_id if given.eos_token_id is not None else self.tokenizer.eos_token_id
        stops = [int(i) for i in (listed if isinstance(listed, list | tuple) else [listed])]
        turn = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        first = turn if turn in stops else self.tokenizer.eos_token_id
        stops = sorted(dict.fromkeys(stops), key=lambda i: i != first)
        pad = next((int(p) for p in (self.tokenizer.pad_token_id, given.pad_token_id) if p is not None), stops[0])
        return stops, pad

    def _settle(self, suppress: Suppress) -> dict[str, Any]:
        """Make policy and generation config one; see the class. Returns what the config loses of what it would have done."""
        from transformers import GenerationConfig

        given, plain = self.net.generation_config, GenerationConfig()
        named = {k: getattr(given, k, None) for k in (*SEARCH, *(SAMPLED if given.do_sample else []))}
        lost = {k: v for k, v in named.items() if v and (v is True or v != 1 or not FACTORS.search(k))}
        for key in {*lost, *SAMPLED}:
            setattr(given, key, getattr(plain, key, None))
        allowed = set(self.stops) if suppress == "allow_empty" else set()
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            listed = [] if suppress == "none" else [int(i) for i in getattr(given, name, None) or [] if i >= 0]
            setattr(self, name, left := [i for i in listed if i not in allowed])
            setattr(given, name, left or None)
        given._from_model_config = False  # else it is made anew from the config on loading
        return lost

    # -- prompts -------------------------------------------------------------------------------------------------------------

    def encode(
        self,
        wavs: Sequence[np.ndarray],
        *,
        language: str | Sequence[str | None] | None = None,
        prompt: str | Sequence[str | None] | None = None,
        grad: bool = False,
        keep: Sequence[bool] | None = None,
    ) -> EncodedPrompts:
        """Run encoder and projector once over waveforms (T_i,) at ``sample_rate``.

        Args:
            wavs: clips; an empty one counts as silence, what lies beyond ``max_s`` is cut off.
            language: one for all, or one a clip.
            prompt: instruction or context, one for all or one a clip.
            grad: keep the graph, to train the encoder.
            keep: clips that come again: a frozen encoder of fixed windows runs once over each, as long as ``encoder_cache_mib`` has room.

        Raises:
            UserError: a language or prompt that the model cannot take.
        """
        if not len(wavs):
            return EncodedPrompts([], [])
        shortest, longest = int(self.family.min_s * self.sample_rate), int(self.max_s * self.sample_rate)
        clips = [np.nan_to_num(np.asarray(w, np.float32)[:longest]) for w in wavs]
        clips = [np.pad(c, (0, max(0, shortest - len(c)))) for c in clips]
        requests = list(map(Request, _each(language, len(wavs)), _each(prompt, len(wavs))))
        keys = list(map(self.encoder_cache.key, clips, requests, keep or [False] * len(clips)))
        made = {i: found for i, key in enumerate(keys) if (found := self.encoder_cache.made.get(key))}
        if new := [i for i in range(len(clips)) if i not in made]:
            prepared = self.family.prepare([clips[i] for i in new], [requests[i] for i in new])
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
                audio = self.family.encode(prepared)
            for i, ids, vectors in zip(new, prepared.ids, audio, strict=True):
                made[i] = ids, vectors if grad else vectors.clone()  # a view would keep the whole batch alive
                self.encoder_cache.put(keys[i], *made[i])
        audio = [self.family.place(made[i][1]) for i in range(len(clips))]
        return EncodedPrompts(self.family.complete([made[i][0] for i in range(len(clips))], audio), audio)

    def embed(self, prompts: EncodedPrompts) -> list[Tensor]:
        """Prompt embeddings (L_i, D): the table's rows, and the audio's vectors in the audio tokens' places."""
        out = []
        for audio, ids in zip(prompts.audio or (), prompts.ids, strict=True):
            at = ids.to(self.device)
            spot = at == self.family.audio_token
            x = self.embed_ids(at.masked_fill(spot, 0))  # the audio token may lie outside the table
            out.append(x.masked_scatter(spot[:, None], audio.to(x.device, x.dtype)))
        return out

    # -- transcripts ---------------------------------------------------------------------------------------------------------

    def text(self, ids: Tensor, mask: Tensor) -> list[str]:
        """Transcripts as they were written: no special tokens, no frame around them, and nothing cleaned up, loops least of all."""
        how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        rows = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
        tokens = [[t for t in row if t not in self.stops] for row in rows]
        return [self.family.transcript(self.tokenizer.decode(row, **how)) for row in tokens]

    def references(
        self, texts: Sequence[str], language: str | Sequence[str | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Token ids (n, S) and mask of reference transcripts as the model would write them, with the stop token.

        Args:
            texts: transcripts.
            language: as it was given to ``encode``: some models write the language first unless it was.
        """
        rows = []
        for text, lang in zip(texts, _each(language, len(texts)), strict=True):
            tokens = self.tokenizer(self.family.reference(text, lang), add_special_tokens=False)["input_ids"]
            rows.append(torch.tensor([*tokens, self.stops[0]]))
        return right_padded(rows, self.pad)


class EncoderCache:
    """Encoded clips in host memory, up to a bound in MiB. What came first stays: of an epoch beyond it, the latest would never be there."""

    def __init__(self, mib: float) -> None:
        self.mib, self.room = mib, int(mib * 2**20)
        self.made: dict[str, tuple[Tensor, Tensor]] = {}

    def key(self, wav: np.ndarray, request: Request, keep: bool) -> str:
        """What a clip and its request are known by; nothing where it is not kept."""
        return blake2b(wav.tobytes() + repr(request).encode()).hexdigest() if keep and self.mib else ""

    def put(self, key: str, ids: Tensor, audio: Tensor) -> None:
        """Keep a clip's prompt and vectors where it has a key and there is room."""
        if key and key not in self.made and audio.nbytes <= self.room:
            self.made[key], self.room = (ids, audio.to("cpu")), self.room - audio.nbytes


def _each(value: Any, count: int) -> list[Any]:
    """One value a clip, from one for all or one each."""
    return [value] * count if value is None or isinstance(value, str) else list(value)


def load_audio_lm(
    name: str, device: torch.device | str = "cpu", dtype: Precision = "fp32", **how: Any
) -> tuple[AudioLM, dict[str, Any]]:
    """Load a recogniser; warns of what its generation config asks for and no policy here does.

    Args:
        name: Hub id, a folder in transformers' layout, a run folder, or 'embedded'.
        device: where to.
        dtype: precision of the weights.
        how: ``train_encoder``, ``suppress``, ``encoder_cache_mib``; see ``AudioLM``.

    Returns, raises: as ``generate.load_lm``.
    """
    import transformers

    def make(where: str, options: dict[str, Any], about: dict[str, Any]) -> AudioLM:
        config = pretrained(transformers.AutoConfig, where, **options)
        cls = getattr(transformers, family_of(str(config.model_type)).architecture or config.architectures[0])
        net = load_net(cls, where, config=config, dtype=dtype_of(dtype, device), **options)
        tokenizer, processor, extractor = _words(where, options)
        model = AudioLM(net, tokenizer, processor, extractor, max_s=about.get("max_s"), **how)
        # where there is no file, transformers makes up an empty one
        if tokenizer.convert_ids_to_tokens(model.stops[0]) is None:
            raise ValueError("the tokenizer does not know the stop token: its files are missing or another model's")
        return model

    model, about = load_lm(name, TASK, "recogniser", device, make)
    if model.overridden:
        named = ", ".join(f"{k} {v}" for k, v in model.overridden.items())
        warn(f"{name}: of its generation config {named} is not applied, neither here nor by what is saved from it")
    return model, about


def _words(where: str, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Tokenizer, and processor and feature extractor where they load; some ask for packages that are not everywhere."""
    from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer

    processor: Any = None
    extractor: Any = None
    with ignoring(*UNLOADABLE):
        processor = pretrained(AutoProcessor, where, **options)
    if hasattr(processor, "tokenizer"):
        return processor.tokenizer, processor, None
    with ignoring(*UNLOADABLE):
        extractor = pretrained(AutoFeatureExtractor, where, **options)
    return pretrained(AutoTokenizer, where, **options), None, extractor


def save_audio_lm(folder: Path, model: AudioLM, *, facts: dict[str, Any], **how: Any) -> None:
    """Write a folder that transformers loads by itself; arguments as in ``folder.save_net``, ``facts`` for ``rlspeech.json``."""
    about = {"sample_rate": model.sample_rate, "max_s": model.max_s, "facts": facts}
    save_lm(folder, model, TASK, "recogniser", about, **how)
    for part in (model.processor, model.extractor, model.tokenizer):
        if part is not None and model.source is None:
            part.save_pretrained(folder)


def match_precision(model: nn.Module, reference: nn.Module) -> None:
    """Give a bf16 reference the arithmetic of its policy, whose weights are fp32 under autocast: its KL then starts at exactly 0.

    Autocast rounds the operands of products to bf16, so that the weights of linear layers may stay so, which are nearly all of them; what
    is looked up or multiplied element by element (embeddings, norms) is not rounded, and neither is what is added to it.
    """
    for ours, theirs in zip(model.modules(), reference.modules(), strict=True):
        for p, q in zip(ours.parameters(recurse=False), theirs.parameters(recurse=False), strict=True):
            if p.requires_grad and not isinstance(theirs, nn.Linear):
                q.data = q.data.float()
