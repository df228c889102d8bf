"""The probe: two settings, an interval each, and nothing trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_speech import SMALL_RL

from rlspeech.config import RL, Exploration, GuardSpec, Lora, RewardSpec, Sampling
from rlspeech.stages import probe
from rlspeech.tasks import get_task
from rlspeech.types import UserError


def _asked(flow: dict[str, str], out: Path, **changes: Any) -> RL:
    what = {"rewards": [RewardSpec(name="si_sdr")], "lora": Lora(rank=2), "clip_s": 0.8, "probe_batches": 4}
    return RL(**{**SMALL_RL, **what, **flow, "out": str(out), **changes})


def test_two_settings(flow: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        Exploration(kind="gain", noise=0.3, nfe=(2, 2), bands=4),
        Exploration(kind="sde", noise=0.4, window=1, start=(1, 1), nfe=(2, 2)),
    ]
    before = Path(flow["model"], "model.safetensors").read_bytes()
    sizes = {"group": 4, "micro_batch": 2, "guards": [GuardSpec(name="stoi")]}
    summary = probe.run(_asked(flow, tmp_path / "out", probe_settings=settings, **sizes))
    assert [r["explore"]["kind"] for r in summary["rows"]] == ["gain", "sde"]
    for row in summary["rows"]:
        for name in ("all", "si_sdr"):
            found = row[name]
            assert found["lo"] <= found["mean"] <= found["hi"] and -1 <= found["mean"] <= 1
            assert (found["critical_prompts"] is None) == (found["mean"] <= 0)
        # one reward: the composition is that reward
        assert row["all"]["mean"] == pytest.approx(row["si_sdr"]["mean"], abs=1e-6)
        assert row["rollouts_per_s"] > 0
    assert json.loads((tmp_path / "out" / "probe.json").read_text()) == json.loads(json.dumps(summary, allow_nan=False))
    assert Path(flow["model"], "model.safetensors").read_bytes() == before
    shown = capsys.readouterr().out
    assert "gain 0.3, 4 bands" in shown and "sde 0.4" in shown


def test_an_interrupted_probe_shows_what_it_has_and_goes_on(
    flow: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [Exploration(kind="gain", noise=0.3, nfe=(2, 2), bands=bands) for bands in (2, 4)]
    config = _asked(flow, tmp_path / "out", probe_settings=settings)
    measure, measured = probe._measure, list[str]()

    def once(*given: object) -> object:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append("one")
        return measure(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(probe, "_measure", once)
    with pytest.raises(KeyboardInterrupt):
        probe.run(config)
    first = json.loads((tmp_path / "out" / "probe.json").read_text())["rows"]
    shown = capsys.readouterr().out
    assert len(first) == 1 and "gain 0.3, 2 bands" in shown and "dnsmos" not in shown  # no guard was asked for

    monkeypatch.setattr(probe, "_measure", measure)
    summary = probe.run(config)
    assert summary["rows"][0] == first[0] and len(summary["rows"]) == 2
    path = tmp_path / "out" / "probe.json"
    path.write_text(json.dumps({**summary, "rows": first}))
    assert probe._known(path, summary["asked"], settings) == first
    path.write_text(json.dumps(summary))
    assert probe._known(path, summary["asked"], settings) == []  # finished: it is measured anew
    path.write_text("{")
    assert probe._known(path, summary["asked"], settings) == []
    assert probe._known(None, summary["asked"], settings) == []
    other = probe.run(config.model_copy(update={"group": 4, "probe_settings": settings[:1]}))
    assert other["rows"][0]["si_sdr"] != first[0]["si_sdr"]


def test_candidates(tmp_path: Path) -> None:
    found = probe.candidates(RL(), get_task("flowse"))
    assert found[0] == RL().explore and get_task("flowse").published in found
    assert len(found) == len({e.model_dump_json() for e in found}) >= 4
    assert len({probe.label(e) for e in found}) == len(found)
    assert probe.label(Sampling(temperature=0.7, top_p=0.9)) == "temperature 0.7, top_p 0.9"
    assert probe.label(Sampling(top_k=50)) == "temperature 1, top_k 50"
    assert probe.candidates(RL(probe_settings=found[:1]), get_task("flowse")) == found[:1]
    with pytest.raises(UserError):
        probe.run(_asked({"model": "/nowhere"}, tmp_path / "out", guards=[GuardSpec(name="stoi")]))
