"""The token reward: padding and soft input, gradients to the input alone, no tokens at all, checkpoints."""

from __future__ import annotations

import pytest
import torch
from tiny_codec_lms import TEXTS, V, token_reward

from rlspeech.models.token_reward import IGNORED, load_token_reward, save_token_reward
from rlspeech.types import UserError

net = pytest.fixture(scope="module")(token_reward)


def rows(*lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (len(lengths), max(lengths)), generator=g)
    return ids, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_one_hot_distributions_are_ids(net):
    ids, mask = rows(9, 5)
    hard, soft = net.encode(ids, mask), net.encode(torch.nn.functional.one_hot(ids, V).float(), mask)
    torch.testing.assert_close(hard.states, soft.states)
    torch.testing.assert_close(net.text_logp(hard, TEXTS[:2]), net.text_logp(soft, TEXTS[:2]))


def test_what_lies_behind_the_end_has_no_influence_not_even_as_nan(net):
    ids, mask = rows(12, 5)
    soft = torch.nn.functional.one_hot(ids, V).float()
    soft[1, 5:] = torch.nan
    together = net.encode(soft, mask)
    alone = net.encode(ids[1:, :5], mask[1:, :5])
    torch.testing.assert_close(together.states[1, :6], alone.states[0], atol=1e-5, rtol=1e-4)
    wanted = net.text_logp(alone, TEXTS[1:2])
    torch.testing.assert_close(net.text_logp(together, TEXTS[:2])[1:], wanted, atol=1e-5, rtol=1e-4)
    for name, logits in net.attributes(together).items():
        torch.testing.assert_close(logits[1], net.attributes(alone)[name][0], atol=1e-5, rtol=1e-4)
    outside = ids.masked_fill(~mask, V + 3)  # a stop id
    torch.testing.assert_close(net.encode(outside, mask).states, net.encode(ids, mask).states)


def test_the_gradient_goes_to_the_input_alone_and_is_the_difference_quotient(net):
    net = net.double()
    try:
        torch.manual_seed(1)
        mask = torch.tensor([[True] * 6 + [False] * 2, [True] * 8])
        soft = torch.randn(2, 8, V, dtype=torch.double).softmax(-1).requires_grad_()

        def reward(x):
            heard = net.encode(x, mask)
            return net.text_logp(heard, TEXTS[:2]).sum() + net.attributes(heard)["sex"].log_softmax(-1)[:, 0].sum()

        (grad,) = torch.autograd.grad(reward(soft), soft)
        assert all(p.grad is None and not p.requires_grad for p in net.parameters())
        assert float(grad[0, 6:].abs().max()) == 0.0 < float(grad[0, :6].abs().min(-1).values.min())
        for i, t, v in [(0, 0, 3), (0, 5, 7), (1, 7, 0), (1, 2, V - 1)]:
            step = torch.zeros_like(soft)
            step[i, t, v] = 1e-5
            slope = (reward(soft + step) - reward(soft - step)).detach() / 2e-5
            assert float(grad[i, t, v]) == pytest.approx(float(slope), rel=1e-4, abs=1e-9)
    finally:
        net.float()


def test_the_posterior_is_that_of_the_pieces_one_after_another(net):
    ids, mask = rows(7)
    heard = net.encode(ids, mask)
    pieces, keep = net.pieces([TEXTS[2]])
    assert int(pieces[0, -1]) == net.end and bool(keep.all())
    total = 0.0
    for s in range(pieces.shape[1]):  # only what comes before a piece decides
        changed = pieces.clone()
        changed[0, s + 1 :] = 5
        total += float(net.text_logits(heard, changed)[0, s].log_softmax(-1)[pieces[0, s]])
    assert float(net.text_logp(heard, [TEXTS[2]])) == pytest.approx(total / pieces.shape[1], rel=1e-5)
    # padding of a short text
    both = net.text_logp(net.encode(ids.repeat(2, 1), mask.repeat(2, 1)), [TEXTS[1], TEXTS[2]])
    assert float(both[1]) == pytest.approx(total / pieces.shape[1], rel=1e-4)


def test_greedy_reading_is_the_argmax_of_the_teacher_forced_pass(net):
    ids, mask = rows(10, 4, 7, seed=3)
    together = net.transcribe([r[m] for r, m in zip(ids, mask, strict=True)])
    for row, keep, text in zip(ids, mask, together, strict=True):
        heard = net.encode(row[keep][None], keep[keep][None])
        (said,) = net._greedy(heard)
        assert net.tokenizer.decode(said, skip_special_tokens=True).strip() == text
        forced = torch.tensor([[*said, net.end]])
        best = net.text_logits(heard, forced)[0].argmax(-1).tolist()
        assert best[: len(said)] == said and len(said) <= int(keep.sum()) + 8


def test_no_tokens_are_an_empty_text_unknown_labels_are_ignored_and_texts_are_no_instructions(net):
    assert net.transcribe([torch.zeros(0, dtype=torch.long)]) == [""] and net.transcribe([]) == []
    empty = net.encode(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.bool))
    assert torch.isfinite(net.text_logp(empty, ["one", ""])).all()
    assert torch.isfinite(net.attributes(empty)["sex"]).all()
    assert net.classes("sex", ["m", None, "x", "f"]).tolist() == [1, IGNORED, IGNORED, 0]
    assert net.classes("quality", [2, "3"]).tolist() == [1, 2]
    ids, _ = net.pieces(["<|im_end|>"])
    assert ids[0].tolist().count(net.end) == 1


def test_a_checkpoint_is_the_network_again(net, tmp_path):
    save_token_reward(tmp_path / "a", net, facts={"steps": 3})
    again, config = load_token_reward(str(tmp_path / "a"))
    assert config["facts"] == {"steps": 3} and again.labels == net.labels and again.codes == V
    ids, mask = rows(9, 5)
    made, wanted = (m.text_logp(m.encode(ids, mask), TEXTS[:2]) for m in (again, net))
    torch.testing.assert_close(made, wanted)
    (tmp_path / "a" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="cannot load"):
        load_token_reward(str(tmp_path / "a"))
    with pytest.raises(UserError, match="no checkpoint"):
        load_token_reward(str(tmp_path / "nowhere"))
