"""``dnsmos_fast`` takes clips of any length; the net itself wants whole hops."""

from __future__ import annotations

import numpy as np
import pytest

from rlspeech.rewards.scorer import get_reward
from rlspeech.types import Sample


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_any_length_is_scored_and_a_few_samples_change_little(engine: str) -> None:
    rng = np.random.default_rng(0)
    wav = (0.05 * rng.standard_normal(24159)).astype(np.float32)
    whole, odd = get_reward(f"dnsmos_fast[engine={engine}]").score(
        [Sample("a", wav[:24000], 16000), Sample("b", wav, 16000)]
    )
    assert whole.value is not None and odd.value is not None, odd.error
    assert abs(whole.value - odd.value) < 0.02
