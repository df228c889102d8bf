"""What is trained and what is the reference; checkpoints that load, and those that must not."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_flow import disturb, tiny_model

from rlspeech.config import Lora
from rlspeech.models.adapters import Adapted
from rlspeech.models.hub import load_model, read_config, resolve, save_model
from rlspeech.types import UserError

_model = partial(tiny_model, std=0.1, depth=2, n_fft=64, hop=32)
KINDS = [Lora(rank=4, alpha=8, targets=t) for t in ("attention", "attention+ff", "all")] + [None]


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 9, 66, generator=g), torch.randn(2, 9, 66, generator=g), torch.rand(2, generator=g)


@pytest.mark.parametrize("lora", KINDS)
@torch.no_grad()
def test_reference_and_merged(lora: Lora | None) -> None:
    inputs, model = _inputs(), _model()
    before = model(*inputs)
    adapted = Adapted(model, lora)
    assert torch.equal(adapted.model(*inputs), before)  # a fresh adapter changes nothing, to the bit
    disturb(adapted.parameters(), 0.1)
    after = adapted.model(*inputs)
    assert float((after - before).abs().max()) > 1e-2
    with adapted.reference() as reference:
        assert torch.equal(reference(*inputs), before)
    torch.testing.assert_close(adapted.model(*inputs), after)  # switched on again
    plain = _model()
    plain.load_state_dict(adapted.merged())  # strict: names and shapes of a plain model
    torch.testing.assert_close(plain(*inputs), after, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(adapted.model(*inputs), after)  # merging left the adapter where it was


@pytest.mark.parametrize(("kind", "size"), [(0, 2 * 4 * 4 * 64), (1, 2 * (4 * 4 * 64 + 2 * 4 * 96)), (3, None)])
def test_only_what_was_named_is_trained(kind: int, size: int | None) -> None:
    lora = KINDS[kind]
    adapted = Adapted(_model(), lora)
    trained = sum(p.numel() for p in adapted.parameters())
    assert trained == (size or sum(p.numel() for p in _model().parameters()))
    adapted.model(*_inputs()).square().sum().backward()
    assert all(p.grad is None for p in adapted.model.parameters() if not p.requires_grad)
    assert any(float(p.grad.abs().max()) > 0 for p in adapted.parameters() if p.grad is not None)
    with adapted.reference() as reference:
        assert lora is not None or not any(p.requires_grad for p in reference.parameters())
    assert len(adapted.parameters()) > 0 and all(p.requires_grad for p in adapted.parameters())


@pytest.mark.parametrize("lora", [KINDS[2], None])
@torch.no_grad()
def test_trained_state_round_trip(lora: Lora | None) -> None:
    one = Adapted(_model(), lora)
    disturb(one.parameters(), 0.1)
    two = Adapted(_model(), lora)
    two.load_trained({k: v.clone() for k, v in one.trained().items()})
    assert torch.equal(one.model(*_inputs()), two.model(*_inputs()))


def test_the_adapter_is_saved_in_pefts_format(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    adapted = Adapted(_model(), KINDS[0])
    disturb(adapted.parameters(), 0.1)
    adapted.save_adapter(str(tmp_path / "adapter"), adapted.trained())
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(v.numel() for v in saved.values()) == sum(p.numel() for p in adapted.parameters())
    Adapted(_model(), None).save_adapter(str(tmp_path / "full"), {})
    assert not (tmp_path / "full").exists()


@torch.no_grad()
def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model, inputs = _model(), _inputs()
    save_model(tmp_path / "a", model, "flowse", facts={"data": "made up", "steps": 3})
    again, config = load_model(str(tmp_path / "a"), "flowse")
    assert torch.equal(again(*inputs), model(*inputs)) and not again.training and again.cfg == model.cfg
    assert config["facts"]["steps"] == 3 and config["sample_rate"] == 16000
    card = (tmp_path / "a" / "README.md").read_text()
    assert "made up" in card and card.startswith("---\n")
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.bin"))


@torch.no_grad()
def test_half_precision_halves_the_file_and_other_weights_may_be_saved(tmp_path: Path) -> None:
    model, inputs = _model(), _inputs()
    others = {k: v + 1 for k, v in model.state_dict().items()}
    for name, how in (("full", {"weights": others}), ("half", {"half": True})):
        save_model(tmp_path / name, model, "flowse", facts={}, **how)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "half")]
    assert sizes[1] < 0.55 * sizes[0]
    again, other = (load_model(str(tmp_path / name), "flowse")[0] for name in ("half", "full"))
    assert next(again.parameters()).dtype == torch.float32
    torch.testing.assert_close(again(*inputs), model(*inputs), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(other.out.bias, model.out.bias + 1)


TINY = _model().cfg.model_dump()
# what becomes of the weights' file, of the config's, or of its key "model"
SPOILT: dict[str, Any] = {"no weights": lambda b: None, "truncated": lambda b: b[:5000], "empty": lambda b: b""}
SPOILT |= {"broken": b"{", "binary": b"\xff\xfe\x00", "a list": b"[1, 2]", "foreign": b'{"model_type": "bert"}'}
SPOILT |= {"no model": None, "unknown key": {**TINY, "colour": "red"}, "other width": {**TINY, "dim": 64}}
SPOILT |= {"bad value": {**TINY, "dim": "wide"}, "impossible": {**TINY, "conv_pos_groups": 5}, "a string": "tiny"}


@pytest.mark.parametrize("how", SPOILT)
def test_checkpoints_that_cannot_be_used(tmp_path: Path, how: str) -> None:
    save_model(tmp_path / "c", _model(), "flowse", facts={})
    config, weights, change = tmp_path / "c" / "config.json", tmp_path / "c" / "model.safetensors", SPOILT[how]
    if callable(change):
        left = change(weights.read_bytes())
        weights.unlink() if left is None else weights.write_bytes(left)
    else:
        whole = json.dumps({**json.loads(config.read_text()), "model": None if isinstance(change, bytes) else change})
        config.write_bytes(change if isinstance(change, bytes) else whole.encode())
    with pytest.raises(UserError, match=f"(?s){tmp_path / 'c'}.*why: "):
        load_model(str(tmp_path / "c"), "flowse")


def test_names_of_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        resolve(str(tmp_path / "nothing"))
    (tmp_path / "ended" / "checkpoints").mkdir(parents=True)
    (tmp_path / "ended" / "metrics.jsonl").write_text("{}")
    with pytest.raises(UserError, match="save_every"):
        resolve(str(tmp_path / "ended"))
    run = tmp_path / "run"
    for step in (10, 20):
        save_model(run / "checkpoints" / f"step_{step:06d}", _model(), "flowse", facts={"step": step})
    (run / "checkpoints" / "latest").write_text("step_000020\n")
    assert read_config(resolve(str(run)))["facts"]["step"] == 20
    (run / "checkpoints" / "best").write_text("step_000010\n")
    assert read_config(resolve(str(run)))["facts"]["step"] == 10
    for odd in (b"step_000099\n", b"\xff\xfe", b"x" * 5000, b"\0", b""):  # pruned by hand, spoilt
        (run / "checkpoints" / "best").write_bytes(odd)
        assert read_config(resolve(str(run)))["facts"]["step"] == 20
