"""One adapter over transformers' causal language models that write codec tokens: from texts to speech and its log-probabilities.

The vocabulary of such a model is text and codec together, and of a row's answer only the codec's slice and the stop are ever right
(``Layout``). So everything here counts in the slice: ids 0 to V - 1 are the codec's, V is the stop, logits are (.., V + 1).
Text can not be drawn into speech, and a probability is that of what was drawn from. The published way, a full softmax over a vocabulary
of which nine tenths are words, costs memory and lets a policy leave the slice; CosyVoice2's export keeps it out with a bias of minus
infinity that other engines drop. What is after the marks is one plain forward, as in ``models/audio_lm/model.py``, whose sampler is used.

A ``Layout`` says how its rows are written: marks around the text, the slice of the vocabulary that is the codec's, the stops. A row is
``before`` text ``after`` codes stop. The embedded policy's marks are its own; of public checkpoints three ways are known, told from their
vocabularies: Llasa (arXiv 2502.04128: a chat whose answer is speech, XCodec2), NeuTTS (NeuCodec; it reads phonemes, so its rows must hold
them), and CosyVoice2's language model as its repository exports it (whose codec is not in transformers). Any other one is described by
the same fields in the ``rlspeech.json`` of its folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from rlspeech.config_parts import CodecLMModel, Count, NonNegative, Positive
from rlspeech.data.text import get_normaliser
from rlspeech.log import say
from rlspeech.models.audio_lm.decode import State
from rlspeech.models.audio_lm.generate import EncodedPrompts, LanguageModel, load_lm, right_padded, save_lm
from rlspeech.models.card import md
from rlspeech.models.codec.codec import Codec, licence_of, load_codec, start_alike
from rlspeech.models.folder import Precision, dtype_of, load_net, pretrained, sizes
from rlspeech.types import UserError

TASK = "tts"
WRITTEN = "basic-1"  # how texts are written for the embedded model
PAD, LEAD = "<|pad|>", " "  # a space before the first word: a word is the same pieces wherever it stands
TEXT, SPEECH, STOP = "<|text|>", "<|speech|>", "<|stop|>"
HOLE = "\u2045text\u2046"  # where the text goes in a chat; no template writes it

Choice = Callable[[Tensor, int], tuple[Tensor, bool]]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of one checkpoint are written."""

    # before, after: what stands around the text; marks in them are special tokens, marks in a text are not
    before: str
    after: str
    # first, size: the codec's ids are ``first`` to ``first + size - 1`` of the vocabulary, in order
    first: int
    size: int
    stops: tuple[int, ...]  # ids that end a row; more than one are one decision, their probabilities add up
    codec: str  # its name, see ``models.codec``; "" where there is none to be had
    sample_rate: Count  # of the speech, in Hz
    frame_s: Positive  # seconds of speech that an id stands for
    normaliser: str = "none-1"  # how texts are written for it, see ``data.text``
    lead: str = ""  # before the text
    joint: str = " "  # between the prompt's text and the text
    # longest prompt speech that is put before the answer; a longer one lends its voice only
    prompt_s: NonNegative = 15.0
    max_s: Positive = 30.0  # longest speech, in seconds

    @classmethod
    def read(cls, given: dict[str, Any]) -> Layout:
        """Build it from fields as in JSON; keys of later versions are passed over. Raises ``ValueError``: missing, or no such value."""
        return TypeAdapter(cls).validate_python(given)


class Known(NamedTuple):
    """A way of writing rows: name, pattern of the codec's tokens, stops, marks around the text, codec, its rate in Hz and frame."""

    name: str
    code: str
    stops: tuple[str, ...]
    around: tuple[str, str]
    codec: str
    sample_rate: int
    frame_s: float
    chat: bool = False


REQUEST, END = "Convert the text to speech:", "<|SPEECH_GENERATION_END|>"
LLASA = f"{REQUEST}<|TEXT_UNDERSTANDING_START|>", "<|TEXT_UNDERSTANDING_END|>"
NEUTTS = f"user: {REQUEST}<|TEXT_PROMPT_START|>", "<|TEXT_PROMPT_END|>\nassistant:<|SPEECH_GENERATION_START|>"
KNOWN = (
    Known("Llasa", "<|s_{}|>", (END,), LLASA, "xcodec2", 16000, 0.02, chat=True),
    Known("NeuTTS", "<|speech_{}|>", (END,), NEUTTS, "neucodec", 24000, 0.02),
    Known("CosyVoice2", "<|s_{}|>", ("<|eos1|>", "<|eos2|>", "<|eos3|>"), ("<|sos|>", "<|task_id|>"), "", 24000, 0.04),
)
ANSWER = "<|SPEECH_GENERATION_START|>"  # what a chat's answer begins with


def layout_of(tokenizer: Any) -> Layout:
    """The layout of a checkpoint without ``rlspeech.json``, by its vocabulary. Raises ``UserError``: none that is known here."""
    vocabulary = tokenizer.get_vocab()
    known = next((k for k in KNOWN if all(m in vocabulary for m in (k.code.format(0), *k.stops))), None)
    if known is None:
        what = "this language model's vocabulary holds no codec that is known here"
        hint = "a rlspeech.json that says its layout (before, after, first, size, stops, codec, sample_rate, frame_s)"
        raise UserError(what, f"looked for the marks of {', '.join(k.name for k in KNOWN)}", hint)
    first, size = vocabulary[known.code.format(0)], 0
    while vocabulary.get(known.code.format(size)) == first + size:
        size += 1
    if known.code.format(size) in vocabulary:
        why = f"{known.code.format(size)} stands apart"
        raise UserError("the codec's ids do not follow each other in the vocabulary", why)
    before, after = _chat(tokenizer, *known.around) if known.chat else known.around
    stops = tuple(vocabulary[s] for s in known.stops)
    return Layout(before, after, first, size, stops, known.codec, known.sample_rate, known.frame_s)


def _chat(tokenizer: Any, before: str, after: str) -> tuple[str, str]:
    """The marks inside a chat of the tokenizer's template; without a template, the plain marks."""
    if not getattr(tokenizer, "chat_template", None):
        return before, after + ANSWER
    turns = [{"role": "user", "content": before + HOLE + after}, {"role": "assistant", "content": ANSWER}]
    how = {"tokenize": False, "continue_final_message": True, "date_string": "26 Jul 2024"}
    head, _, tail = str(tokenizer.apply_chat_template(turns, **how)).partition(HOLE)
    return head, tail


class Line(NamedTuple):
    """One text to synthesise: the text, and a voice's text and codec ids (T,) long, where the model is to go on from them."""

    text: str
    prompt_text: str | None = None
    prompt: Tensor | None = None


class CodecLM(LanguageModel):
    """A causal language model over text and codec tokens as a policy over speech.

    Args:
        net: the transformers model, with an inner ``model``.
        tokenizer: of texts and marks.
        layout: how rows are written.
        codec: already loaded; None: ``layout.codec`` is loaded when it is first asked for.
        cfg: settings that an embedded model was built with; of others None.
    """

    def __init__(self, net: Any, tokenizer: Any, layout: Layout, codec: Codec | None = None, cfg: Any = None) -> None:
        super().__init__()
        self.net, self.tokenizer, self.layout, self.cfg = net, tokenizer, layout, cfg
        self.model_type = str(net.config.model_type)
        self.sample_rate, self.max_s, self._warned = layout.sample_rate, layout.max_s, False
        self.positions = int(getattr(net.config, "max_position_embeddings", None) or sys.maxsize)
        # in the slice's count the stop is one behind the codes, and fills up too
        self.size = self.stop = self.pad = layout.size
        self.stops = [self.stop]
        self._normalise = get_normaliser(layout.normaliser)
        around = (layout.before, layout.after)
        self._before, self._after = (tokenizer(x, add_special_tokens=False).input_ids for x in around)
        self._codec: dict[str, Any] = {} if codec is None else {"it": codec}
        self.lora_targets = self.lora_patterns(("model",))

    def shared(self) -> Sequence[Any]:
        return self.tokenizer, self._codec

    @property
    def codec(self) -> Codec:
        """The codec whose ids it writes. Raises ``UserError``: none to be had, or one that does not fit."""
        if "it" in self._codec:
            return self._codec["it"]  # type: ignore[no-any-return]
        if not self.layout.codec:
            what = "this language model's codec is not to be had here"
            why = "it is none of transformers and none was trained"
            raise UserError(what, why, "name one in its rlspeech.json (layout.codec); rewards of tokens need none")
        found = load_codec(self.layout.codec, self.device)
        if (found.size, found.sample_rate) != (self.size, self.sample_rate):
            what = f"the codec {self.layout.codec} is not the one that this model writes"
            why = f"it has {found.size} codes at {found.sample_rate} Hz, the model {self.size} at {self.sample_rate} Hz"
            raise UserError(what, why, "name the codec in the model's rlspeech.json (layout.codec)")
        self._codec["it"] = found
        return found

    def park(self, phase: str, device: torch.device | str) -> None:
        """Put the language model onto ``device`` for a phase that needs it ("rollout", "update", "all"), else into the host's memory."""
        self.net.to(device if phase in {"rollout", "update", "all"} else "cpu")

    # -- prompts -------------------------------------------------------------------------------------------------------------

    def pieces(self, text: str) -> list[int]:
        """Ids of a text as it is written for the model; what looks like a mark in it is spelt out."""
        written = self._normalise(text)
        whole = self.layout.lead + written if written else ""
        return list(self.tokenizer(whole, add_special_tokens=False, split_special_tokens=True).input_ids)

    def fits(self, line: Line, answer: int = 1) -> bool:
        """Whether the prompt stands in the row: it has a text, is not longer than ``prompt_s``, and leaves room for ``answer`` ids."""
        if line.prompt is None or not line.prompt_text:
            return False
        short = 0 < len(line.prompt) * self.layout.frame_s <= self.layout.prompt_s
        return short and len(self._row(line, line.prompt)) + answer <= self.positions

    def encode(self, lines: Sequence[Line]) -> EncodedPrompts:
        """Rows up to where speech begins; a text may be empty."""
        return EncodedPrompts([torch.tensor(self._row(x, x.prompt if self.fits(x) else None)) for x in lines])

    def _row(self, line: Line, prompt: Tensor | None) -> list[int]:
        whole = line.text if prompt is None else self.layout.joint.join([line.prompt_text or "", line.text])
        codes = [] if prompt is None else self.vocabulary(prompt.long().cpu()).tolist()
        return [*self._before, *self.pieces(whole), *self._after, *codes]

    def text_bytes(self, line: Line, bytes_per_s: float) -> int:
        """Longest text behind a line that has none yet: its pieces, at most one a byte, and its speech must have positions, too."""
        free = max(1, self.positions - len(self.encode([line]).ids[0]))
        return int(min(bytes_per_s * self.max_s, free / (1 + 1 / (bytes_per_s * self.layout.frame_s))))

    def vocabulary(self, ids: Tensor) -> Tensor:
        """Ids of the whole vocabulary of ids of the slice; the stop is the first of the stops."""
        return torch.where(ids < self.size, ids + self.layout.first, torch.full_like(ids, self.layout.stops[0]))

    def written(self) -> tuple[Tensor, Tensor]:
        first, stops = self.layout.first, self.layout.stops
        rows = torch.cat([torch.arange(first, first + self.size), torch.tensor(stops)])
        return rows, torch.arange(len(rows)).clamp_max(self.stop)

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Embeddings (..., D) of ids (...) of the slice."""
        return self.net.get_input_embeddings()(self.vocabulary(ids))  # type: ignore[no-any-return]

    def embed_soft(self, soft: Tensor) -> Tensor:
        """Embeddings (..., D) of distributions (..., V) over the codes."""
        table = self.net.get_input_embeddings().weight[self.layout.first : self.layout.first + self.size]
        return (soft.to(table.dtype) @ table).to(table.dtype)  # type: ignore[no-any-return]

    def embed(self, prompts: EncodedPrompts) -> list[Tensor]:
        table = self.net.get_input_embeddings()
        return [table(ids.to(self.device)) for ids in prompts.ids]

    # -- speech --------------------------------------------------------------------------------------------------------------

    def generate(self, prompts: EncodedPrompts, **how: Any) -> Any:
        """Write answers that end where the model's positions do; arguments as in ``LanguageModel``. Raises ``UserError``: none is left."""
        left = np.array([self.positions - len(row) for row in prompts.ids], dtype=np.int64)
        if (left < 1).any():
            why = f"the model knows {self.positions} positions, text and prompt take {self.positions - left.min()}"
            raise UserError("a text is too long to be spoken", why, "a shorter text, or a shorter prompt")
        if not self._warned and (left < how["max_new_tokens"]).any():
            say(f"answers end where the model's {self.positions} positions do, {left.min()} ids behind the longest row")
            self._warned = True
        return super().generate(prompts, **how | {"max_new_tokens": np.minimum(left, how["max_new_tokens"]).tolist()})

    def unroll(self, prompts: EncodedPrompts, rows: Sequence[int] | Tensor, steps: int, choose: Choice) -> Tensor:
        """Free-running decoding on relaxed tokens, with gradient through every step.

        Args:
            prompts: rows up to where speech begins.
            rows: (n,) which of them.
            steps: S at most.
            choose: (logits (n, V + 1), step) -> distributions (n, V) over the codes that the next step sees, and whether that was the last.

        Returns:
            logits (n, S', V + 1) float32.
        """
        state, out = State(self, prompts.select(rows)), list[Tensor]()
        state.start(1, 1, steps)
        logits = state.logits
        for s in range(steps):
            out.append(logits.float())
            soft, last = choose(out[-1], s)
            if last or s + 1 == steps:
                break
            logits = state.step(self.embed_soft(soft)[:, None], s)
        return torch.stack(out, 1)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V + 1) of hidden states (..., D): the codes', and the stop's (of several stops, the logarithm of their sum)."""
        return self.open_head()(hidden)

    def open_head(self) -> Callable[[Tensor], Tensor]:
        out, first = self.net.get_output_embeddings(), self.layout.first
        rows, bias = (slice(first, first + self.size), list(self.layout.stops)), getattr(out, "bias", None)
        codes, ends = ((out.weight[at], None if bias is None else bias[at]) for at in rows)

        def head(hidden: Tensor) -> Tensor:
            end = nn.functional.linear(hidden, *ends)
            end = end if len(rows[1]) == 1 else end.float().logsumexp(-1, keepdim=True).to(end.dtype)
            return torch.cat([nn.functional.linear(hidden, *codes), end], -1)

        return head

    def codes(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """The codec's ids (T_i,) in rows (N, S), without stop and padding."""
        return [row[keep & (row < self.size)] for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]

    def references(self, codes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Ids (n, S) of the slice and mask of recordings' codes (T_i,), with the stop."""
        rows = [torch.cat([c.long().cpu(), torch.tensor([self.stop])]) for c in codes]
        return right_padded(rows, self.pad)


# ------------------------------------------------------------------------------------------------------------ folders


def make_text_tokenizer(texts: Iterable[str], size: int) -> Any:
    """A byte-level BPE of ``size`` pieces with this module's marks, trained on normalised texts, as a ``Qwen2Tokenizer``.

    That class it has to be: whatever a folder's tokenizer is, for a Qwen2 model transformers loads one with Qwen2's rules for words.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    marks = [PAD, TEXT, SPEECH, STOP]
    plain, inner = Qwen2Tokenizer().backend_tokenizer, Tokenizer(models.BPE())
    inner.normalizer, inner.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    how: dict[str, Any] = {"show_progress": False, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=marks, **how)
    inner.train_from_iterator((LEAD + t for t in texts), trainer)
    merges: Any = [tuple(m) for m in json.loads(inner.to_str())["model"]["merges"]]
    special: dict[str, Any] = {"unk_token": PAD, "pad_token": PAD, "eos_token": STOP}
    special["extra_special_tokens"] = [TEXT, SPEECH]
    return Qwen2Tokenizer(vocab=inner.get_vocab(), merges=merges, clean_up_tokenization_spaces=False, **special)


def build_codec_lm(cfg: CodecLMModel, texts: Sequence[str], codec: Codec | None = None) -> CodecLM:
    """A fresh model: a tiny ``Qwen2ForCausalLM`` with a tokenizer trained on the texts.

    Args:
        cfg: sizes, and the name of the codec.
        texts: as they are in the manifest.
        codec: that codec, where it is already loaded.

    Raises:
        UserError: no text, or no such codec.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    spoken = [t for t in map(get_normaliser(WRITTEN), texts) if t]
    if not spoken:
        why = "a synthesiser learns from transcribed speech"
        raise UserError("no row of the data has a text", why, "rlspeech prepare --help")
    given, codec = codec, codec or load_codec(cfg.codec)
    tokenizer = make_text_tokenizer(spoken, cfg.vocabulary)
    stop, pad = (int(tokenizer.convert_tokens_to_ids(m)) for m in (STOP, PAD))
    speech = (len(tokenizer), codec.size, (stop,), cfg.codec, codec.sample_rate, codec.frame_s)
    layout = Layout(TEXT, SPEECH, *speech, WRITTEN, lead=LEAD, prompt_s=cfg.prompt_s, max_s=cfg.max_s)
    shape = sizes(cfg.dim, cfg.layers, cfg.heads, cfg.ff, vocab_size=len(tokenizer) + codec.size)
    shape |= {"num_key_value_heads": cfg.heads, "max_position_embeddings": 4096}
    config: Any = Qwen2Config(**shape, tie_word_embeddings=False, use_sliding_window=False)
    config.pad_token_id, config.eos_token_id, config.bos_token_id = pad, stop, None
    net: Any = Qwen2ForCausalLM(config)
    net.generation_config.eos_token_id, net.generation_config.pad_token_id = stop, pad
    for table in (net.get_input_embeddings(), net.get_output_embeddings()):
        start_alike(table.weight.data[len(tokenizer) :], codec)
    return CodecLM(net, tokenizer, layout, given, cfg)  # one loaded here is not where the model will be


def load_codec_lm(
    name: str, device: torch.device | str = "cpu", dtype: Precision = "fp32", codec: Codec | None = None
) -> tuple[CodecLM, dict[str, Any]]:
    """Load a codec language model; arguments, answer and errors as in ``audio_lm.load_audio_lm``, ``codec`` where it is already loaded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def make(where: str, options: dict[str, Any], about: dict[str, Any]) -> CodecLM:
        tokenizer = pretrained(AutoTokenizer, where, **options)
        net = load_net(AutoModelForCausalLM, where, dtype=dtype_of(dtype, device), **options)
        layout = Layout.read(about["layout"]) if "layout" in about else layout_of(tokenizer)
        rows = min(net.get_input_embeddings().weight.shape[0], net.get_output_embeddings().weight.shape[0])
        if layout.first + layout.size > rows or max(layout.stops) >= rows:
            raise ValueError(f"the layout names ids of a vocabulary of {rows} that it does not have")
        return CodecLM(net, tokenizer, layout, codec, CodecLMModel(**about["model"]) if about.get("model") else None)

    return load_lm(name, TASK, "synthesiser", device, make)


def save_codec_lm(folder: Path, model: CodecLM, *, facts: dict[str, Any], **how: Any) -> None:
    """Write a folder that transformers loads by itself; arguments as in ``folder.save_net``, ``facts`` for ``rlspeech.json``."""
    cfg = None if model.cfg is None else model.cfg.model_dump()
    codec, licence = md(model.layout.codec or "of its own"), licence_of(model.layout.codec)
    codec += f" (licence of its weights: {licence})" if licence else ""
    about = {"layout": asdict(model.layout), "model": cfg, "facts": facts}
    detail = f"It writes {1 / model.layout.frame_s:g} ids a second of the codec {codec}."
    save_lm(folder, model, TASK, "codec language model", about, [detail], **how)
    if model.source is None or model.source.resolve() == folder.resolve():
        model.tokenizer.save_pretrained(folder)
