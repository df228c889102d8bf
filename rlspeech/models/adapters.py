"""What of a model is trained, and the frozen reference beside it: a LoRA adapter (peft) that can be switched off, or every weight."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from rlspeech.config import Lora
from rlspeech.models.folder import merge_lora


class Adapted:
    """A model with its trainable part and its reference.

    Args:
        model: changed in place when ``lora`` is given (its linear layers gain adapters).
        lora: rank, scale and targets; None trains every weight and keeps a frozen copy as the reference. What ``targets`` means is the
            model's: ``lora_targets`` holds a pattern of module names for each. A model with a part that is never trained (an audio LLM's
            encoder) has ``unfreeze``, which leaves it out, and shares it with its copies.
    """

    def __init__(self, model: Any, lora: Lora | None) -> None:
        self.model = model
        self._frozen: Any = None
        if lora is None:
            self._frozen = copy.deepcopy(model).eval().requires_grad_(False)
            if hasattr(model, "unfreeze"):
                model.unfreeze()
            else:
                model.requires_grad_(True)
        else:
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a factor, any float does
                target_modules=model.lora_targets[lora.targets],
                lora_dropout=0.0,
                bias="none",
            )
            self._peft = get_peft_model(model, config)  # type: ignore[arg-type]
        model.eval()  # no dropout anywhere: the sampler and the update see the same function

    def parameters(self) -> list[Parameter]:
        """The trainable ones."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The model as it was before training; with an adapter, the same object with the adapter off."""
        if self._frozen is not None:
            yield self._frozen
            return
        with self._peft.disable_adapter():
            yield self.model

    def draw_back(self, left: float) -> None:
        """Move what is trained towards the reference: of the way to it, in an adapter's product too, the share ``left`` is left."""
        for name, p in self.model.named_parameters():
            if p.requires_grad and self._frozen is not None:
                p.data.lerp_(self._frozen.get_parameter(name).to(p), 1 - left)
            elif p.requires_grad and "lora_B" in name:
                p.data.mul_(left)

    def trained(self) -> dict[str, Tensor]:
        """The trainable weights by name, for trainer state."""
        return {k: p.detach() for k, p in self.model.named_parameters() if p.requires_grad}

    def load_trained(self, state: dict[str, Tensor]) -> None:
        """Put back what ``trained`` gave."""
        own = {k: p for k, p in self.model.named_parameters() if p.requires_grad}
        for name, value in state.items():
            own[name].data.copy_(value)

    def merged(self) -> dict[str, Tensor]:
        """Weights of a plain model that does the same, adapters folded in."""
        return merge_lora(copy.deepcopy(self.model)).state_dict()  # type: ignore[no-any-return]

    def save_adapter(self, folder: str) -> None:
        """Write the adapter in peft's format; nothing where every weight is trained."""
        if self._frozen is None:
            self._peft.save_pretrained(folder)
