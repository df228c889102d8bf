"""What is trained and its way from the reference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlspeech.config import Lora
from rlspeech.models.adapters import Adapted


class Net(nn.Module):
    lora_targets = {"attention": "one|two"}

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)


@pytest.mark.parametrize("lora", [Lora(rank=2, alpha=4.0), None], ids=["lora", "whole"])
def test_drawing_back_leaves_a_share_of_the_way(lora: Lora | None) -> None:
    torch.manual_seed(0)
    adapted = Adapted(Net(), lora)
    start = adapted.merged()
    for p in adapted.parameters():
        p.data += torch.randn(p.shape)
    far = adapted.merged()
    adapted.draw_back(0.25)
    near = adapted.merged()
    assert any((far[k] != start[k]).any() for k in start)
    for k in start:
        torch.testing.assert_close(near[k] - start[k], 0.25 * (far[k] - start[k]), atol=1e-6, rtol=1e-5)
