"""The adapter over audio LLMs: agreement with transformers' own forward and generate, and a test for each trap and public bug."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_audio_lms import ALL, ASR, AUDIO, BOS, END, EOS, PAD, clips, parameters_of, tiny

from rlspeech.config import Lora, Sampling
from rlspeech.models.adapters import Adapted
from rlspeech.models.audio_lm import generate
from rlspeech.models.audio_lm.families import Request, family_of, granite_mel
from rlspeech.models.audio_lm.generate import EncodedPrompts
from rlspeech.models.audio_lm.model import AudioLM, load_audio_lm, save_audio_lm
from rlspeech.types import UserError

T1 = Sampling()
CHUNKED = ("voxtral", "glmasr")  # windows of 2 s here: the clips have one, one and two
CLIPS = clips(1.0, 0.45, 3.1)


def _lm(model_type: str, **more: Any) -> AudioLM:
    return tiny(model_type, max_s=2.0 if model_type in {"qwen2_audio", "whisper"} else 4.0, **more)


@pytest.fixture(params=ALL)
def lm(request: pytest.FixtureRequest) -> AudioLM:
    return _lm(request.param)


def _plain(lm: AudioLM, wav: np.ndarray) -> dict[str, Any]:
    """What transformers' own forward takes for one clip: expanded ids and features, no vectors of ours."""
    prepared = lm.family.prepare([wav[: int(lm.max_s * lm.sample_rate)]], [Request()])
    features = dict(prepared.features)
    if lm.seq2seq:
        ids = lm.family.complete(prepared.ids, lm.family.encode(prepared))  # fills in the language
        return {"input_features": features["input_features"], "decoder_input_ids": ids[0][None]}
    if lm.model_type == "granite_speech":
        real = torch.ones(1, prepared.counts[0], dtype=torch.bool)
        features = {"input_features": features["0"][None], "input_features_mask": real}
    if "frames" in features:
        steps = torch.arange(features["input_features"].shape[-1])
        features["feature_attention_mask"] = (steps < features.pop("frames")[:, None]).long()
    if lm.model_type in {"qwen3_asr", "glmasr"}:
        features.pop("num_audio_tokens", None)
    ids = prepared.ids[0][None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **features}


def test_a_group_equals_repeated_single_calls(lm: AudioLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug 1 (tiled against interleaved repeats) and trap (b) (chunks of different clips mixed): three clips, unlike lengths and seeds."""
    how: dict[str, Any] = {"group": 3, "sampling": T1, "max_new_tokens": 9, "seed": [11, 12, 13]}
    together = lm.generate(lm.encode(CLIPS), **how)
    monkeypatch.setattr(generate, "shares", lambda *_: True)  # as with long prompts, of which nothing is copied
    monkeypatch.setattr(generate, "CHECK", (4, 4))
    assert all(a is b or torch.equal(a, b) for a, b in zip(lm.generate(lm.encode(CLIPS), **how), together, strict=True))
    monkeypatch.undo()
    assert together.ids.shape[0] == 9 and len({tuple(r) for r in together.ids.tolist()}) > 6
    for b, wav in enumerate(CLIPS):
        alone = lm.generate(lm.encode([wav]), group=3, sampling=T1, max_new_tokens=9, seed=[11 + b])
        rows = slice(3 * b, 3 * b + 3)
        width = alone.ids.shape[1]
        assert torch.equal(together.ids[rows, :width], alone.ids)
        assert torch.equal(together.mask[rows, :width], alone.mask)
        first = lm.generate(lm.encode([wav]), group=1, sampling=T1, max_new_tokens=9, seed=[11 + b])
        assert torch.equal(together.ids[3 * b, : first.ids.shape[1]], first.ids[0])
        assert torch.equal(together.finished[rows], alone.finished)


def test_the_encoder_hears_a_clip_once_and_the_head_sees_the_transcript_only(lm: AudioLM) -> None:
    """Traps (a) and (c): Qwen2-Audio would return the logits of every position."""
    heads, seen = list[tuple[int, ...]](), list[int]()

    def count(module: Any, args: Any, options: Any, out: Any) -> None:
        seen.append(len((*args, *options.values())[0]))

    lm.modules_of("encoder")[0].register_forward_hook(count, with_kwargs=True)
    lm.net.get_output_embeddings().register_forward_hook(lambda m, args, out: heads.append(tuple(out.shape[:-1])))
    heard = lm.encode(CLIPS)
    drawn = lm.generate(heard, group=4, sampling=T1, max_new_tokens=3)
    lm.forward_logits(heard, torch.arange(12) // 4, drawn.ids)
    assert sum(seen) == (4 if lm.model_type in CHUNKED else 3) and heads[-1] == (12, drawn.ids.shape[1])


def test_what_stands_beside_a_clip_does_not_matter(lm: AudioLM) -> None:
    together, alone = lm.encode(CLIPS), [lm.encode([w]) for w in CLIPS]
    ids = torch.randint(0, 200, (3, 6), generator=torch.Generator().manual_seed(0))
    both = lm.forward_logits(together, [0, 1, 2], ids)
    for b in range(3):
        torch.testing.assert_close(together.audio[b], alone[b].audio[0], atol=2e-5, rtol=1e-4)
        own = lm.forward_logits(alone[b], [0], ids[b : b + 1])
        torch.testing.assert_close(both[b : b + 1], own, atol=1e-4, rtol=1e-4)


def test_what_is_saved_decodes_as_what_is_trained(
    lm: AudioLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By plain ``generate`` of transformers: lists that suppress what is likeliest are the policy's, what no policy here does is gone."""
    free = lm.generate(lm.encode(CLIPS), max_new_tokens=8).ids
    lm.net.get_output_embeddings().weight.data[lm.stops[0]] = 1.01 * lm.net.get_output_embeddings().weight[free[0, 0]]
    given = lm.net.generation_config
    given.do_sample, given.top_k, given.top_p, given.repetition_penalty, given.num_beams = True, 1, 0.5, 5.0, 3
    never, first = [*free[:, 1].tolist(), 3], [lm.stops[0], *free[:, 0].tolist()]
    given.suppress_tokens, given.begin_suppress_tokens, given.min_new_tokens = never, first, 1
    if lm.seq2seq:  # as older checkpoints say it
        german, given.task = given.lang_to_id["<|de|>"], None
        given.forced_decoder_ids = [[1, german], [2, given.task_to_id["transcribe"]]]
    shut = AudioLM(lm.net, lm.tokenizer, lm.processor, lm.extractor, max_s=lm.max_s).eval()
    assert set(shut.overridden) == {"do_sample", *"top_k top_p repetition_penalty num_beams min_new_tokens".split()}
    save_audio_lm(tmp_path, shut, facts={})
    lm = load_audio_lm(str(tmp_path))[0]
    assert not lm.overridden and "generation config" not in capsys.readouterr().err
    heard, plain = lm.encode(CLIPS), type(lm.net).from_pretrained(tmp_path)
    assert not lm.seq2seq or heard.ids[0][1] == german
    ours = lm.generate(heard, max_new_tokens=8)
    assert not torch.equal(ours.ids[:, :1], free[:, :1]) and int(ours.mask.sum()) > 5
    for row, keep, wav in zip(ours.ids, ours.mask, CLIPS, strict=True):
        asked = _plain(lm, wav)
        asked.pop("decoder_input_ids", None)
        theirs = plain.generate(**asked, max_new_tokens=8)
        written = theirs[0, 0 if lm.seq2seq else asked["input_ids"].shape[1] :]
        assert row[keep].tolist() == written[: int(keep.sum())].tolist()
    best = lm.generate(heard, max_new_tokens=8, sampling=Sampling(top_k=1), seed=3, group=2)
    assert torch.equal(best.ids, ours.ids.repeat_interleave(2, 0))
    drawn = lm.generate(heard, group=4, sampling=T1, max_new_tokens=6, seed=5)
    logits = lm.forward_logits(heard, torch.arange(12) // 4, drawn.ids)
    assert bool((logits[..., never] == -torch.inf).all()) and bool((logits[:, 0, first] == -torch.inf).all())
    assert bool(logits.gather(-1, drawn.ids[..., None])[..., 0][drawn.mask].isfinite().all())
    beam = lm.generate(heard, max_new_tokens=4, beams=2).ids
    assert not torch.isin(beam, torch.tensor(never)).any() and not torch.isin(beam[:, 0], torch.tensor(first)).any()
    empty = load_audio_lm(str(tmp_path), suppress="allow_empty")[0]
    made = empty.generate(heard, max_new_tokens=8)
    assert made.ids[0, 0] == empty.stops[0] and made.mask[0].sum() == 1 and empty.text(made.ids, made.mask)[0] == ""
    assert empty.net.generation_config.begin_suppress_tokens == first[1:] and empty.suppress_tokens == never
    none = load_audio_lm(str(tmp_path), suppress="none")[0]
    assert none.suppress_tokens == [] == none.begin_suppress_tokens
    assert none.net.generation_config.suppress_tokens is None


@pytest.mark.parametrize("model_type", ["fun_asr_nano", "whisper"])
def test_rows_that_stop(model_type: str) -> None:
    lm = _lm(model_type)
    end = lm.tokenizer.convert_tokens_to_ids(END)
    assert lm.stops == [end]
    heard = lm.encode(clips(*[0.5] * 4))

    def stop_often(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        others = out.index_fill(-1, torch.tensor([end]), -torch.inf).logsumexp(-1, keepdim=True)
        return out.index_copy(-1, torch.tensor([end]), others - 1.4)  # one token in five

    lm.net.get_output_embeddings().register_forward_hook(stop_often)
    drawn = lm.generate(heard, group=16, sampling=T1, max_new_tokens=12, seed=2)
    stopped = (drawn.ids == end) & drawn.mask
    lengths = drawn.mask.sum(1)
    assert 0 < int(drawn.finished.sum()) < 64 and len(set(lengths.tolist())) > 4
    for row in range(64):
        n = int(lengths[row])
        assert bool(drawn.mask[row, :n].all()) and bool(stopped[row].any()) == bool(drawn.finished[row])
        assert not drawn.finished[row] or drawn.ids[row, n - 1] == end  # the stop token is a decision like the others
        assert bool((drawn.ids[row, n:] == lm.pad).all()) and (drawn.finished[row] or n == 12)
    # rows that leave the batch change nothing for those that stay
    for b in range(4):
        alone = lm.generate(heard.select([b]), group=16, sampling=T1, max_new_tokens=12, seed=[77])
        again = lm.generate(heard.select([b]), group=1, sampling=T1, max_new_tokens=12, seed=[77])
        n = int(again.mask.sum())
        assert torch.equal(alone.ids[0, :n], again.ids[0, :n]) and int(alone.mask[0].sum()) == n


def test_no_clips_and_no_room() -> None:
    lm = _lm("whisper")
    none = lm.generate(lm.encode([]), group=3, sampling=T1, max_new_tokens=5)
    assert none.ids.shape == (0, 0) and none.finished.shape == (0,)
    long = lm.generate(lm.encode(clips(0.5)), max_new_tokens=500)  # 64 positions, 4 of them the prompt's
    assert long.ids.shape[1] <= 60
    lm, (wav,) = tiny("fun_asr_nano", max_s=1.0), clips(2.0)  # what is too long is not heard
    assert torch.equal(lm.encode([wav]).audio[0], lm.encode([wav[:16000]]).audio[0])


def test_beams_find_something_at_least_as_likely(lm: AudioLM) -> None:
    heard = lm.encode(CLIPS)

    def likelihood(drawn: Any) -> torch.Tensor:
        logp = lm.forward_logits(heard, [0, 1, 2], drawn.ids).log_softmax(-1).gather(-1, drawn.ids[..., None])[..., 0]
        return (logp * drawn.mask).sum(1)

    with torch.no_grad():
        greedy, beam = lm.generate(heard, max_new_tokens=3), lm.generate(heard, max_new_tokens=3, beams=8)
        assert beam.ids.shape[0] == 3
        if bool((beam.mask.sum(1) == greedy.mask.sum(1)).all()):  # the search compares means, we compare sums
            assert bool((likelihood(beam) >= likelihood(greedy) - 1e-3).all())


@torch.no_grad()
def test_log_probabilities_equal_a_plain_forward(lm: AudioLM) -> None:
    """Of drawn tokens of unlike lengths, against the transformers model on ids and features, one row at a time without padding.

    Bug 2: log-probabilities are those of the answer's tokens, not of what surrounds them.
    """
    heard = lm.encode(CLIPS)
    drawn = lm.generate(heard, group=2, sampling=T1, max_new_tokens=7, seed=4)
    rows = torch.tensor([3, 0, 5, 1])  # any order, unlike prompts
    lengths = drawn.mask[rows].sum(1).minimum(torch.tensor([7, 3, 5, 6]))
    padded = drawn.ids[rows].masked_fill(torch.arange(drawn.ids.shape[1]) >= lengths[:, None], lm.pad)
    ours = lm.forward_logits(heard, rows // 2, padded)
    assert ours.dtype == torch.float32 and ours.shape[:2] == drawn.ids[rows].shape
    for i, row in enumerate(rows.tolist()):
        given, n = _plain(lm, CLIPS[row // 2]), int(lengths[i])
        key = "decoder_input_ids" if lm.seq2seq else "input_ids"
        start = given[key].shape[1]
        given[key] = torch.cat([given[key], drawn.ids[row : row + 1, :n]], 1)
        if "attention_mask" in given:
            given["attention_mask"] = torch.ones_like(given[key])
        theirs = lm.net(**given).logits[0, start - 1 : start - 1 + n].float()
        torch.testing.assert_close(ours[i, :n], theirs, atol=1e-4, rtol=1e-4)


def test_rows_of_a_clip_share_its_keys_and_values() -> None:
    """Made once a clip for ragged rows in any order; logits and gradients are the sum of what each row has by itself."""
    lm, made = _lm("whisper"), list[int]()
    heard, rows = lm.encode(CLIPS), torch.tensor([2, 0, 2, 2])
    ids = torch.randint(0, 200, (4, 5), generator=torch.Generator().manual_seed(0))
    weights, parts = parameters_of(lm, "language"), []
    lm.net.model.decoder.layers[0].encoder_attn.v_proj.register_forward_hook(lambda m, a, out: made.append(len(out)))
    logits = lm.forward_logits(heard, rows, ids)
    gradients = torch.autograd.grad(logits.square().mean(), weights, allow_unused=True)
    for i, row in enumerate(rows):
        alone = lm.forward_logits(heard, [row], ids[i : i + 1])
        torch.testing.assert_close(alone[0], logits[i], atol=1e-6, rtol=1e-6)
        parts.append(torch.autograd.grad(alone.square().mean() / 4, weights, allow_unused=True))
    for whole, *each in zip(gradients, *parts, strict=True):
        assert whole is None or torch.testing.assert_close(whole, sum(each), atol=1e-6, rtol=1e-5) is None
    lm.generate(heard, group=4, sampling=T1, max_new_tokens=3)
    assert made == [2, 1, 1, 1, 1, 3]


def test_heard_clips_are_parked_and_chosen() -> None:
    lm = _lm("fun_asr_nano")
    heard = lm.encode(CLIPS).to("cpu")
    some = heard.select(torch.tensor([2, 0, 2]))
    assert len(some) == 3 and some.audio[0] is heard.audio[2] and some.ids[1] is heard.ids[0]
    assert not any(a.requires_grad for a in heard.audio)
    assert all(a.untyped_storage().nbytes() == a.nbytes for a in heard.audio)
    for phase in ("encode", "rollout", "reward", "update", "all"):
        lm.park(phase, "cpu")  # type: ignore[arg-type]
    meta = copy.deepcopy(lm)
    meta.park("rollout", "meta")  # a device that holds nothing: shows what was sent there
    assert meta.device.type == "meta"
    assert all(p.device.type == "cpu" for p in parameters_of(meta, "encoder") + parameters_of(meta, "projector"))


ODD = ["", "hello there", "  two  blanks ", "naïve Zürich ½", "你好，世界", "don't , stop .", "<b>&amp;</b>"]
ODD += ["👩‍👩‍👧 \u202eabc\u0301 \x00"]


def test_references_come_back_as_they_were(lm: AudioLM) -> None:
    ids, mask = lm.references(ODD)
    for row, n in zip(ids, mask.sum(1).tolist(), strict=True):
        assert row[n - 1] == lm.stops[0] and bool((row[n:] == lm.pad).all())
    lead = " " if lm.model_type == "whisper" else ""
    assert lm.text(ids, mask) == [lead + t if t else t for t in ODD]
    assert lm.text(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0, dtype=torch.bool)) == [""]


def test_qwen3_asr_writes_the_language_first_and_loops_are_not_cleaned_away() -> None:
    """Bug 6: the processor's own parser takes a 21st repetition away, and no reward would ever see it."""
    lm = _lm("qwen3_asr")
    ids, mask = lm.references(["yes", "", "ja"], language=[None, None, "de"])
    raw = [lm.tokenizer.decode(r[k][:-1]) for r, k in zip(ids, mask, strict=True)]
    assert raw == [f"language English{ASR}yes", f"language None{ASR}", "ja"]
    forced, free = (lm.tokenizer.decode(lm.encode(clips(0.5), language=g).ids[0]) for g in ("en", None))
    assert forced.endswith(f"language English{ASR}") and not free.endswith(ASR)
    loop = "no " * 40
    ids, mask = lm.references([loop])
    assert lm.text(ids, mask) == [loop]
    # what it would have been
    assert len(lm.processor.decode(ids[0], return_format="transcription_only")) < len(loop) // 5


def test_prompts_are_worded_as_the_processors_word_them() -> None:
    lm, wavs = _lm("qwen2_audio"), clips(0.7, 1.2)
    content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": "Write it down."}]
    chat = [{"role": "user", "content": content}]
    text = lm.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    made = lm.processor(text=[text] * 2, audio=wavs, sampling_rate=16000, return_tensors="pt", padding=True)
    theirs = [row[real] for row, real in zip(made["input_ids"], made["attention_mask"].bool(), strict=True)]
    ours = lm.encode(wavs, prompt="Write it down.").ids
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    whole = f"{BOS}{AUDIO}{EOS}in French:"
    assert lm.tokenizer.decode(lm.encode(wavs[:1], prompt=whole).ids[0]).endswith(f"{AUDIO}{EOS}in French:")
    with pytest.raises(UserError, match=re.escape(AUDIO)):
        lm.encode(wavs[:1], prompt=f"{AUDIO} and {AUDIO}")

    fun = _lm("fun_asr_nano")
    asked = fun.encode(wavs[:1], prompt="at sea", language="en")
    said = fun.tokenizer.decode(asked.ids[0])
    assert said.count(AUDIO) > 5 and said.endswith(f"{EOS}at sea英文: {END}\n<|im_start|>assistant\n")
    with pytest.raises(UserError, match="language"):
        fun.encode(wavs[:1], language="Klingon")

    voxtral = _lm("voxtral")
    said = voxtral.tokenizer.decode(voxtral.encode(clips(3.0), language="en").ids[0])
    assert said == f"<s>[INST][BEGIN_AUDIO]{AUDIO * 50}[/INST]lang:en[TRANSCRIBE]"

    whisper = _lm("whisper")
    prompts = [whisper.tokenizer.decode(i) for i in whisper.encode(clips(0.5, 0.5), language=["German", None]).ids]
    assert prompts[0] == "<|startoftranscript|><|de|><|transcribe|><|notimestamps|>"
    wavs = clips(0.5, 1.0, 1.5, 2.0, seed=3)
    features = whisper.extractor(wavs, sampling_rate=16000, return_tensors="pt").input_features
    theirs = whisper.net.detect_language(features, num_segment_frames=200)
    assert [int(i[1]) for i in whisper.encode(wavs).ids] == theirs.tolist()


def test_granites_features_are_torchaudios() -> None:
    """Against transformers' numpy spectrogram with the settings of torchaudio's MelSpectrogram."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    wav = clips(0.61)[0]
    bank, window = mel_filter_bank(257, 80, 0.0, 8000.0, 16000, mel_scale="htk"), window_function(400, "hann")
    mel = spectrogram(wav, window, 400, 160, fft_length=512, power=2.0, mel_filters=bank, center=True)
    log = np.log10(np.maximum(mel, 1e-10)).T
    log = np.maximum(log, log.max() - 8) / 4 + 1
    log = log[: len(log) // 2 * 2].reshape(-1, 160)
    ours = granite_mel(torch.from_numpy(wav)).numpy()
    # torch centres the window in the frame, numpy's starts it
    assert ours.shape == log.shape and np.abs(ours - log)[1:-2].max() < 2e-3


def test_empty_and_odd_audio_costs_nobody_else(lm: AudioLM) -> None:
    (good,) = clips(0.8)
    odd = [np.zeros(0, np.float32), clips(0.05)[0], np.full(4000, np.nan, np.float32), good, np.zeros(8000, np.float32)]
    heard = lm.encode(odd)
    assert len(heard) == 5 and all(len(a) > 0 and bool(torch.isfinite(a).all()) for a in heard.audio)
    torch.testing.assert_close(heard.audio[3], lm.encode([good]).audio[0], atol=2e-5, rtol=1e-4)
    drawn = lm.generate(heard, group=2, sampling=T1, max_new_tokens=4)
    assert drawn.ids.shape[0] == 10 and len(lm.text(drawn.ids, drawn.mask)) == 10


@pytest.mark.parametrize("kind", ["attention", "attention+ff", "all", None])
def test_encoder_and_projector_stay_as_they_are(lm: AudioLM, kind: Any) -> None:
    adapted = Adapted(lm, None if kind is None else Lora(rank=2, alpha=4, targets=kind))
    trained = {n for n, p in lm.named_parameters() if p.requires_grad}
    ours = tuple(f"net.{t}" for t in lm.family.language)
    assert trained and all(n.startswith(ours) for n in trained)
    heard = lm.encode(CLIPS, grad=True)
    assert not any(a.requires_grad for a in heard.audio)
    ids, mask = lm.references(["ab", "c", "def"])
    with torch.no_grad():
        before = lm.forward_logits(heard, [0, 1, 2], ids)
    lm.forward_logits(heard, [0, 1, 2], ids)[mask].square().sum().backward()
    assert sum(int(p.grad is not None and bool(p.grad.abs().sum() > 0)) for p in adapted.parameters()) > 3
    with torch.no_grad():
        for p in adapted.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
        after = lm.forward_logits(heard, [0, 1, 2], ids)
        assert float((after - before)[mask].abs().max()) > 1e-2
        with adapted.reference() as reference:
            torch.testing.assert_close(reference.forward_logits(heard, [0, 1, 2], ids)[mask], before[mask])
            if kind is None:  # no second encoder in memory
                shared = {id(p) for p in parameters_of(lm, "encoder") + parameters_of(lm, "projector")}
                assert shared <= {id(p) for p in reference.parameters()}
                assert not {id(p) for p in parameters_of(lm, "language")} & {id(p) for p in reference.parameters()}
        plain = _lm(lm.model_type)
        plain.load_state_dict(adapted.merged())
        torch.testing.assert_close(plain.forward_logits(heard, [0, 1, 2], ids)[mask], after[mask], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["fun_asr_nano", "qwen2_audio", "whisper"])
@pytest.mark.parametrize("lora", [Lora(rank=2, alpha=4, targets="attention"), None])
def test_a_trained_encoder_has_a_reference_of_its_own(model_type: str, lora: Lora | None) -> None:
    lm = _lm(model_type, train_encoder=True)
    fixed = {n for n, p in lm.named_parameters() if not p.requires_grad}
    adapted = Adapted(lm, lora)
    # position tables
    assert lora is not None or not any(p.requires_grad for n, p in lm.named_parameters() if n in fixed)
    heard = lm.encode(CLIPS, grad=True)
    ids, mask = lm.references(["ab", "c", "def"])
    before = lm.forward_logits(heard, [0, 1, 2], ids)
    before[mask].square().sum().backward()
    trained = {n for n, p in lm.named_parameters() if p.requires_grad and p.grad is not None}
    for part in (*lm.family.encoder, *lm.family.projector):
        assert any(n.startswith(f"net.{part}.") for n in trained), part
    with torch.no_grad():
        for p in adapted.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
        with adapted.reference() as reference:
            again = reference.forward_logits(reference.encode(CLIPS), [0, 1, 2], ids)
        torch.testing.assert_close(again[mask], before[mask].detach())


def test_copies_share_what_is_frozen_and_bf16_writes_and_looks_again() -> None:
    lm = _lm("fun_asr_nano")
    twin = copy.deepcopy(lm)
    assert twin.tokenizer is lm.tokenizer and twin.family.net is twin.net and twin.net is not lm.net
    assert twin.net.model.audio_tower is lm.net.model.audio_tower
    assert twin.net.model.language_model is not lm.net.model.language_model
    apart = copy.deepcopy(_lm("fun_asr_nano", train_encoder=True))
    assert apart.frozen_modules() == []
    lm = lm.to(torch.bfloat16)
    heard = lm.encode(CLIPS)
    drawn = lm.generate(heard, group=2, sampling=T1, max_new_tokens=5)
    assert heard.audio[0].dtype == torch.bfloat16
    assert lm.forward_logits(heard, torch.arange(6) // 2, drawn.ids).dtype == torch.float32


def test_other_models_are_refused() -> None:
    with pytest.raises(UserError, match="'bert'"):
        family_of("bert")
    fun = _lm("fun_asr_nano")
    fun.tokenizer.chat_template = None
    with pytest.raises(UserError, match="chat template"):
        fun.encode(clips(0.5))
    lm = _lm("qwen3_asr")
    with pytest.raises(UserError, match="processor"):
        AudioLM(lm.net, lm.tokenizer)
    assert isinstance(lm.encode(clips(0.3)), EncodedPrompts) and lm.tokenizer.convert_ids_to_tokens(lm.pad) == PAD
