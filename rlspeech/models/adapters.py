"""What of a model is trained, and the frozen reference beside it: a LoRA adapter (peft) that can be switched off, or every weight."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rlspeech.config import Lora
from rlspeech.models import sharding
from rlspeech.models.folder import merge_lora


class Adapted:
    """A model with its trainable part and its reference.

    Args:
        model: changed in place when ``lora`` is given (its linear layers gain adapters).
        lora: rank, scale and targets; None trains every weight and keeps a frozen copy as the reference. What ``targets`` means is the
            model's: ``lora_targets`` holds a pattern of module names for each. A model with a part that is never trained (an audio LLM's
            encoder) has ``unfreeze``, which leaves it out, and shares it with its copies.
        compared: something is computed with the reference; else no copy is kept.

    Attributes:
        frozen: the copy, where there is one.
        sharded: every process holds a part of the weights (``sharding``).
    """

    def __init__(self, model: Any, lora: Lora | None, *, compared: bool = True) -> None:
        self.model, self.sharded = model, False
        self.frozen: Any = None
        self._peft: Any = None
        if lora is None:
            self.frozen = copy.deepcopy(model).eval().requires_grad_(False) if compared else None
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
        if self._peft is None:
            assert self.frozen is not None, "nothing was to be compared with the reference"
            yield self.frozen
            return
        with self._peft.disable_adapter():
            yield self.model

    def shard(self, half: bool) -> None:
        """Keep this process's part of the weights, the reference's too; see ``sharding.shard``."""
        self.sharded = True
        for model in filter(None, (self.model, self.frozen)):
            sharding.shard(model, half)

    def gathered(self, *, reference: bool = False) -> AbstractContextManager[None]:
        """Hold sharded weights whole, the reference's if asked for; all processes come by. See ``sharding.gathered``."""
        self._settle()
        models = [m for m in (self.model, self.frozen if reference else None) if m is not None]
        return sharding.gathered(*models) if self.sharded else nullcontext()

    def idle(self, with_kl: bool) -> Tensor:
        """0, by a pass of the policy and one of the reference: where weights are sharded, other processes' wait for them."""
        loss = self.model.idle()
        if with_kl:
            with torch.no_grad(), self.reference() as other:
                other.idle()
        return loss  # type: ignore[no-any-return]

    def _settle(self) -> None:
        """Free what of a sharded reference has stayed whole since the last pass: its embeddings and head."""
        if self.sharded and self.frozen is not None:
            self.frozen.reset_iter_state()

    def draw_back(self, left: float) -> None:
        """Move what is trained towards the reference: of the way to it, in an adapter's product too, the share ``left`` is left."""
        self._settle()
        for name, p in self.model.named_parameters():
            if p.requires_grad and self.frozen is not None:
                p.data.lerp_(self.frozen.get_parameter(name).to(p.device, p.dtype), 1 - left)
            elif p.requires_grad and "lora_B" in name:
                p.data.mul_(left)

    def trained(self) -> dict[str, Tensor]:
        """The trainable weights by name, for trainer state."""
        return {k: p.detach() for k, p in self.model.named_parameters() if p.requires_grad}

    def load_trained(self, state: dict[str, Tensor]) -> None:
        """Put back what ``trained`` gave."""
        own = {k: p for k, p in self.model.named_parameters() if p.requires_grad}
        for name, value in state.items():
            own[name].data.copy_(sharding.part_like(value, own[name]))

    def merged(self, keep: bool = True) -> dict[str, Tensor]:
        """Weights of a plain model that does the same, adapters folded in; of a sharded one only where they are to be kept."""
        if not self.sharded:
            return merge_lora(copy.deepcopy(self.model)).state_dict() if keep else {}
        found = sharding.whole(self.model.state_dict(keep_vars=True), keep)
        for name, layer in self.model.named_modules() if keep and self._peft else ():
            if f"{name}.lora_A.default.weight" in found:
                a, b = (found.pop(f"{name}.lora_{x}.default.weight") for x in "AB")
                found[f"{name}.base_layer.weight"] += (b @ a) * layer.scaling["default"]
        return {k.replace(".base_layer.", "."): v for k, v in found.items()}

    def save_adapter(self, folder: str, trained: dict[str, Tensor]) -> None:
        """Write the adapter, as ``trained`` gave it and whole, in peft's format; nothing where every weight is trained."""
        if self._peft is not None:
            self._peft.save_pretrained(folder, state_dict={f"base_model.model.{k}": v for k, v in trained.items()})
