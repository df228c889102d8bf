"""Codec language models: what is drawn is what is looked at again, the slice, marks and prompts, public layouts, checkpoints."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tiny_codec_lms import SMALL, LevelCodec, V, adapted_public, public, tiny

from rlspeech.config import Lora, Sampling
from rlspeech.models.adapters import Adapted
from rlspeech.models.codec.lm import CodecLM, Layout, Line, build_codec_lm, layout_of, load_codec_lm, save_codec_lm
from rlspeech.types import UserError

KINDS = ("embedded", "llasa", "neutts", "cosyvoice2")
VOICED = Line("seven eight nine", "four", torch.tensor([3, 1, 4, 1, 5]))
LINES = [Line("one two"), Line(""), VOICED, Line("Żółw 漢字 🙂")]


def model(kind: str) -> CodecLM:
    return tiny() if kind == "embedded" else adapted_public(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_is_repeated_single_calls_and_padding_does_not_matter(kind: str) -> None:
    lm = model(kind)
    together = lm.generate(lm.encode(LINES), group=3, sampling=Sampling(), max_new_tokens=12, seed=[5, 6, 7, 8])
    assert together.ids.shape[0] == 12 and not torch.equal(together.ids[0], together.ids[1])
    for b, line in enumerate(LINES):
        alone = lm.generate(lm.encode([line]), group=3, sampling=Sampling(), max_new_tokens=12, seed=[5 + b])
        own = slice(3 * b, 3 * b + 3)
        assert torch.equal(together.ids[own, : alone.ids.shape[1]], alone.ids)
        assert torch.equal(together.finished[own], alone.finished)
    assert int(together.ids.max()) <= lm.stop == lm.size and bool((together.ids[~together.mask] == lm.pad).all())


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_a_plain_forwards_over_codes_and_stops(kind: str) -> None:
    lm = model(kind)
    drawn = lm.generate(lm.encode(LINES), group=2, sampling=Sampling(), max_new_tokens=9, seed=1)
    rows = torch.arange(4).repeat_interleave(2)
    logits = lm.forward_logits(lm.encode(LINES), rows, drawn.ids)
    assert logits.shape == (8, drawn.ids.shape[1], V + 1) and logits.dtype == torch.float32
    first, stops = lm.layout.first, list(lm.layout.stops)
    for i, row in enumerate(rows.tolist()):
        ids, keep = lm.vocabulary(drawn.ids[i]), int(drawn.mask[i].sum())
        start = lm.encode(LINES).ids[row]
        whole = lm.net(input_ids=torch.cat([start, ids])[None]).logits[0, len(start) - 1 :][:keep]
        p = whole.softmax(-1)
        wanted = torch.cat([p[:, first : first + V], p[:, stops].sum(1, keepdim=True)], 1)
        wanted = wanted / wanted.sum(1, keepdim=True)
        torch.testing.assert_close(logits[i, :keep].softmax(-1), wanted, atol=1e-5, rtol=1e-4)


def test_the_sampler_draws_from_what_is_looked_at() -> None:
    """Half of the first tokens' mass is where the logits say it is."""
    lm = tiny()
    prompts = lm.encode(LINES[:1])
    drawn = lm.generate(prompts, group=600, sampling=Sampling(), max_new_tokens=1, seed=3)
    p = lm.forward_logits(prompts, [0], drawn.ids[:1])[0, 0].softmax(-1)
    found = torch.bincount(drawn.ids[:, 0], minlength=V + 1) / 600
    assert float((found - p.detach()).abs().max()) < 0.07


def test_a_heads_bias_counts_and_several_stops_are_one_decision() -> None:
    lm = adapted_public("cosyvoice2")
    lm.net.lm_head = torch.nn.Linear(16, lm.net.lm_head.out_features)
    state = torch.randn(3, 16)
    whole = lm.net.lm_head(state)
    stops = list(lm.layout.stops)
    assert len(stops) == 3
    torch.testing.assert_close(lm.head(state)[:, -1].exp(), whole[:, stops].exp().sum(1))
    torch.testing.assert_close(lm.head(state)[:, :-1], whole[:, lm.layout.first : lm.layout.first + V])


def test_a_row_is_marks_text_prompt_and_nothing_else() -> None:
    lm = tiny()
    mark, speech = (lm.tokenizer.convert_tokens_to_ids(m) for m in ("<|text|>", "<|speech|>"))
    plain, empty, voiced, odd = lm.encode(LINES).ids
    assert plain.tolist() == [mark, *lm.pieces("one two"), speech] and empty.tolist() == [mark, speech]
    first = lm.layout.first
    assert voiced.tolist() == [mark, *lm.pieces("four seven eight nine"), speech, *(first + i for i in (3, 1, 4, 1, 5))]
    assert lm.tokenizer.unk_token_id not in odd and "漢字" in lm.tokenizer.decode(odd)  # bytes, where there is no piece
    assert lm.pieces("one two") == [*lm.pieces("one"), *lm.pieces("two")]  # a word is written alike wherever it stands


def test_a_text_cannot_write_marks() -> None:
    for lm in (tiny(), adapted_public("llasa")):
        marks = [lm.layout.stops[0], lm.layout.first + 3]
        for text in ("<|stop|> <|speech|>", "<|s_3|><|SPEECH_GENERATION_END|>"):
            assert not set(lm.pieces(text)) & set(marks)
            assert not set(lm.pieces(text)) & {lm.encode([Line("")]).ids[0][-1].item()}


def test_prompt_and_answer_keep_to_the_positions_that_the_model_knows(capsys: pytest.CaptureFixture[str]) -> None:
    lm = adapted_public("llasa", max_position_embeddings=80)
    line = Line("four", "one", torch.zeros(20, dtype=torch.long))
    alone, prompted = (len(lm.encode([x]).ids[0]) for x in (Line("four"), line))
    assert lm.fits(line, 80 - prompted) and not lm.fits(line, 81 - prompted)
    for text, length in (("one", 70), (None, 5), ("", 5), ("one", 0)):  # too long, no text, nothing in it
        assert len(lm.encode([Line("four", text, torch.zeros(length, dtype=torch.long))]).ids[0]) == alone
    assert tiny().fits(long := Line("", "one", torch.zeros(25, dtype=torch.long))) and not tiny(prompt_s=0.9).fits(long)
    lm.net.lm_head.weight.data[list(lm.layout.stops)] = 0
    drawn = lm.generate(lm.encode([line, Line("four")]), sampling=Sampling(), max_new_tokens=[90, 3])
    assert drawn.mask.sum(1).tolist() == [80 - prompted, 3] and "80 positions" in capsys.readouterr().err
    assert (
        lm.text_bytes(Line("", *line[1:]), 12.0) < lm.text_bytes(Line(""), 12.0) < 80 < tiny().text_bytes(Line(""), 30)
    )
    with pytest.raises(UserError, match="80 positions"):
        lm.generate(lm.encode([Line("four " * 99)]), max_new_tokens=1)


def test_references_end_with_the_stop_and_codes_are_without() -> None:
    lm = tiny()
    ids, mask = lm.references([torch.tensor([1, 2, 3]), torch.tensor([], dtype=torch.long)])
    assert ids.tolist() == [[1, 2, 3, V], [V, V, V, V]] and mask.sum(1).tolist() == [4, 1]
    assert [c.tolist() for c in lm.codes(ids, mask)] == [[1, 2, 3], []]


def test_unrolling_on_one_hot_tokens_is_teacher_forcing_and_the_gradient_goes_through_time() -> None:
    lm = tiny()
    prompts, rows = lm.encode(LINES), torch.tensor([2, 0, 3])
    ids = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6], [5, 3, 5, 8]])
    soft = torch.nn.functional.one_hot(ids, V).float().requires_grad_()
    made = lm.unroll(prompts, rows, 4, lambda logits, s: (soft[:, s], s == 3))
    torch.testing.assert_close(made, lm.forward_logits(prompts, rows, ids), atol=1e-5, rtol=1e-4)
    (back,) = torch.autograd.grad(made[:, 3].logsumexp(-1).sum(), soft)
    assert all(float(back[:, s].abs().max()) > 0 for s in range(3)) and not back[:, 3].any()


def test_llasas_row_is_its_authors() -> None:
    net, tokenizer = public("llasa")
    lm = CodecLM(net, tokenizer, layout_of(tokenizer), LevelCodec())
    prompt = torch.tensor([4, 7])
    for line, text, codes in ((Line("one"), "one", ""), (Line("one", "four", prompt), "four one", "<|s_4|><|s_7|>")):
        said = f"<|TEXT_UNDERSTANDING_START|>{text}<|TEXT_UNDERSTANDING_END|>"
        chat = [{"role": "user", "content": "Convert the text to speech:" + said}]
        chat += [{"role": "assistant", "content": "<|SPEECH_GENERATION_START|>" + codes}]
        theirs = tokenizer.apply_chat_template(chat, tokenize=True, continue_final_message=True, return_dict=False)
        assert lm.encode([line]).ids[0].tolist() == list(theirs)
    assert (lm.layout.codec, lm.sample_rate, lm.layout.frame_s) == ("xcodec2", 16000, 0.02)


NEUTTS = "user: Convert the text to speech:<|TEXT_PROMPT_START|>wˈʌn<|TEXT_PROMPT_END|>\nassistant:<|SPEECH_GENERATION_START|>"


@pytest.mark.parametrize(("kind", "row"), [("neutts", NEUTTS), ("cosyvoice2", "<|sos|>wˈʌn<|task_id|>")])
def test_rows_of_the_others(kind: str, row: str) -> None:
    lm = adapted_public(kind)
    assert lm.encode([Line("wˈʌn")]).ids[0].tolist() == lm.tokenizer(row, add_special_tokens=False).input_ids


def test_vocabularies_that_are_not_known_and_a_codec_that_is_not_to_be_had() -> None:
    with pytest.raises(UserError, match="CosyVoice2"):
        layout_of(tiny().tokenizer)
    with pytest.raises(UserError, match=r"<\|s_"):
        layout_of(public("cosyvoice2", apart=True)[1])
    net, tokenizer = public("cosyvoice2")
    with pytest.raises(UserError, match="layout.codec"):
        _ = CodecLM(net, tokenizer, layout_of(tokenizer)).codec


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4), Lora(rank=2, alpha=4, targets="all")])
def test_copies_share_tokenizer_and_codec_and_only_the_language_model_is_adapted(lora: Lora | None) -> None:
    lm = tiny()
    twin = copy.deepcopy(lm)
    assert twin.tokenizer is lm.tokenizer and twin.codec is lm.codec
    twin.net.lm_head.weight.data.zero_()
    assert lm.net.lm_head.weight.any()
    adapted = Adapted(lm, lora)
    names = set(adapted.trained())
    assert names and (lora is None or all("lora" in n and "lm_head" not in n for n in names))
    if lora is not None and lora.targets == "all":
        assert any("gate_proj" in n for n in names)


@pytest.mark.parametrize("kind", ["embedded", "llasa"])
def test_round_trip(kind: str, tmp_path: Path) -> None:
    import transformers

    lm = model(kind)
    if kind == "llasa":  # as a publisher writes it: no file of ours
        lm.net.save_pretrained(tmp_path / "a")
        lm.tokenizer.save_pretrained(tmp_path / "a")
    else:
        save_codec_lm(tmp_path / "a", lm, facts={"steps": 3, "data": "made up"})
        assert "made up" in (tmp_path / "a" / "README.md").read_text()
    again, about = load_codec_lm(str(tmp_path / "a"), codec=LevelCodec())
    assert about["task"] == "tts" and again.layout == lm.layout and not again.training
    save_codec_lm(tmp_path / "b", again, facts={})
    third, _ = load_codec_lm(str(tmp_path / "b"), codec=LevelCodec())
    assert ("CC BY-NC 4.0" in (tmp_path / "b" / "README.md").read_text()) == (kind == "llasa")  # its codec's
    ids, mask = lm.references([torch.tensor([1, 2, 3])])
    for other in (again, third):
        wanted = lm.forward_logits(lm.encode(LINES[2:3]), [0], ids)
        torch.testing.assert_close(other.forward_logits(other.encode(LINES[2:3]), [0], ids), wanted)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")  # the library needs nothing of ours
    assert all(torch.equal(v, lm.net.state_dict()[k]) for k, v in theirs.state_dict().items())
    assert third.tokenizer.get_vocab() == lm.tokenizer.get_vocab()
    assert (tmp_path / "b" / "model.safetensors").stat().st_mode & 0o044
    assert (third.cfg == SMALL) == (kind == "embedded")
    assert next(load_codec_lm(str(tmp_path / "b"), dtype="bf16")[0].parameters()).dtype == torch.bfloat16
    assert Layout.read({**json.loads(json.dumps(asdict(lm.layout))), "colour": "blue"}) == lm.layout  # a later one's


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    lm = tiny()
    save_codec_lm(tmp_path, lm, facts={})
    about = json.loads((tmp_path / "rlspeech.json").read_text())
    large = {**about["layout"], "size": 5000}
    wrong = {
        "another task": {"task": "asr"},
        "a vocabulary of": {"layout": large},
        "ValidationError": {"layout": about["layout"] | {"sample_rate": "u0"}},
    }
    for why, spoilt in wrong.items():
        (tmp_path / "rlspeech.json").write_text(json.dumps({**about, **spoilt}))
        with pytest.raises(UserError, match=f"why: .*{why}"):
            load_codec_lm(str(tmp_path))
    with pytest.raises(UserError, match="no checkpoint"):
        load_codec_lm(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="prepare --help"):
        build_codec_lm(SMALL, ["", "..."], LevelCodec())
