"""A language model's weights in shards, one a process: FSDP2 (``torch.distributed.fsdp.fully_shard``), a unit a decoder layer.

The textbook version gathers a layer where it runs, forward and backward, and frees it behind it; embeddings, last norm and head are one
more unit, whole from the first layer to the end of the backward pass. That needs the same passes in all processes. Sampling has a pass a
token, as many as its longest row has, so it runs on weights that are ``gathered`` before; an update makes its passes equally many
(``PolicyUpdate.passes``). Gradients are summed over processes, not averaged. What policy and reference share (an encoder) stays whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rlspeech.types import UserError


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has a part of it only."""
    return hasattr(tensor, "full_tensor")


def shard(model: Any, half: bool) -> None:
    """Keep this process's part of a ``LanguageModel``'s weights, in place; all processes shard the same models in the same order.

    A trained weight p calls ``p.look``, if it is set, with each pass's gradient of the whole weight, before it is summed over processes.

    Args:
        model: the same weights in every process, on its device.
        half: layers are gathered in bf16, as autocast would round them; their shards and sums of gradients stay as they are.

    Raises:
        UserError: it has no decoder layers.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    from transformers.modeling_layers import GradientCheckpointingLayer

    shared = {p for module in model.frozen_modules() for p in module.parameters()}
    found = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    layers = [m for m in found if shared.isdisjoint(m.parameters())]
    if not layers:
        why = "it has no decoder layers that transformers calls so"
        raise UserError(f"{model.model_type} cannot be sharded", why, "--set sharding=none")
    mesh = init_device_mesh(model.device.type, (get_world_size(),))
    for unit in (*layers, model):  # under autocast, what stands between layers is not rounded
        cast = MixedPrecisionPolicy(torch.bfloat16 if half and unit is not model else None, torch.float32)
        fully_shard(unit, mesh=mesh, ignored_params=shared, mp_policy=cast)
    for unit in (*layers, model):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo has no other
    register_fsdp_forward_method(model, "forward_states")
    model.set_reduce_scatter_unused_params(True)
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        model.idle()  # the first pass says which unit is the outermost
    model.reset_iter_state()
    parts = dict(model.named_parameters())
    with gathered(model):
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(_looking(parts[name]))


def _looking(part: Parameter) -> Callable[[Tensor], None]:
    def look(weight: Tensor) -> None:
        if see := getattr(part, "look", None):
            see(weight.grad)

    return look


@contextmanager
def gathered(*models: Any) -> Iterator[None]:
    """Hold sharded models' weights whole, so that each process may make passes of its own, without gradients."""
    from torch.distributed.fsdp import FSDPModule

    units = [unit for model in models for unit in model.modules() if isinstance(unit, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit not in models, recurse=False)
        for model in models:
            model.reset_iter_state()  # which shards, and forgets what order layers were called in


def whole(tree: Any, keep: bool = True, made: dict[int, Tensor] | None = None) -> Any:
    """Dicts and lists with their sharded tensors gathered one by one in host memory, empty where not to ``keep``; other things as they are.

    All processes must come by. A tensor that stands in several places is gathered once.
    """
    made = {} if made is None else made
    if isinstance(tree, dict):
        return {k: whole(v, keep, made) for k, v in tree.items()}
    if isinstance(tree, list):
        return [whole(v, keep, made) for v in tree]
    if not isinstance(tree, Tensor) or not is_sharded(tree):
        return tree
    if id(tree) not in made:
        full = tree.detach().full_tensor()  # type: ignore[attr-defined]
        made[id(tree)] = full.cpu() if keep else full.new_zeros(0)
    return made[id(tree)]


def part_like(value: Any, weight: Tensor) -> Any:
    """This process's part of a whole tensor of a weight's shape, as the weight is sharded; anything else as it is."""
    if not isinstance(value, Tensor) or not is_sharded(weight) or value.shape != weight.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    how: Any = weight
    return distribute_tensor(value.to(weight.device), how.device_mesh, how.placements, src_data_rank=None)


def part_of_state(state: dict[str, Any], weights: Sequence[Tensor]) -> dict[str, Any]:
    """An optimiser's state as ``whole`` left it, in this process's parts."""
    rows = {i: {k: part_like(v, weights[int(i)]) for k, v in row.items()} for i, row in state["state"].items()}
    return {**state, "state": rows}
