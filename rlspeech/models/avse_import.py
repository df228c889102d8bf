"""Weights of the AVSEC-4 baseline, as its organisers publish them, for our ``AvseEnhancer``.

The published file is a Lightning checkpoint, a zip that torch wrote. It is read with torch's restricted reader (``weights_only=True``),
which builds tensors and plain containers and runs nothing; a ``.safetensors`` file of the same names is read too. Sizes are inferred
from the shapes. The result computes what the baseline computes, mono or binaural, on audio and video of any length: the settings are
``variant="avse4"`` (see ``AvseModel``), no level, no hidden videos; the two biases per repeat that our layers have and theirs have not
are zero. Left out: ``layer1.downsample``, which the baseline stores but never uses, and the division of every output by its peak.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from rlspeech.config_parts import AvseModel
from rlspeech.models.avse import AvseEnhancer
from rlspeech.types import UserError

KERNEL = 40  # the baseline stretches the video by 32: right for a hop of 20 samples only
LAYERS = {"0": "inp", "1": "act1", "3.net.0": "depth", "3.net.1": "act2", "3.net.3": "out"}  # of a block
UNUSED = "visual_frontend.resnet.layer1.downsample.weight"
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
TASK = "avse"  # of the model that the weights become
LIMIT = 8  # names in a message
TRUST = (
    "if it is whole and you trust it, export its tensors where the baseline runs, and convert pretrained.safetensors:\n"
    "    import torch; from safetensors.torch import save_file; "
    "s = torch.load('pretrained.ckpt', map_location='cpu', weights_only=False)['state_dict']; "
    "save_file({k: v.contiguous() for k, v in s.items()}, 'pretrained.safetensors')"
)
Turn = Callable[[Tensor], Tensor]
Names = dict[str, tuple[str, Turn]]  # theirs -> ours, and how the tensor is turned


def read_avse4(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a published checkpoint (``.ckpt`` of Lightning, or ``.safetensors``) by their names there, in float32.

    Raises:
        UserError: missing, unreadable, or with more in it than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        try_this = "download pretrained.ckpt of the AVSEC-4 baseline first; nothing is downloaded here"
        raise UserError(f"no file {path}", "", try_this)
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names its reasons by a dozen types
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        raise UserError(f"cannot read {path}", why, TRUST) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    whole = isinstance(found, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
    if not whole or not found:
        raise UserError(f"{path} holds no weights", "neither a dictionary of tensors nor one under 'state_dict'")
    return {k: v.float() if v.is_floating_point() else v for k, v in found.items()}


def convert_avse4(theirs: Mapping[str, Tensor]) -> AvseEnhancer:
    """An enhancer, in evaluation mode, that computes what the baseline with these tensors computes.

    Raises:
        UserError: names that are missing or unexpected, shapes that do not fit together.
    """
    cfg = settings_of(theirs)
    names = names_of(cfg)
    missing, unexpected = sorted(names.keys() - theirs.keys()), sorted(theirs.keys() - names.keys() - {UNUSED})
    if missing or unexpected:
        _refuse(missing, unexpected)
    model = AvseEnhancer(cfg)
    ours = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    for name, (own, turn) in names.items():
        try:
            value = turn(theirs[name])
        except (RuntimeError, IndexError) as error:
            raise UserError(f"{name} has the shape {tuple(theirs[name].shape)}", str(error).splitlines()[0]) from error
        if value.shape != ours[own].shape:
            why = f"as {own} it should be {tuple(ours[own].shape)}"
            raise UserError(f"{name} has the shape {tuple(theirs[name].shape)}", why)
        ours[own] = value.contiguous()
    model.load_state_dict(ours)
    return model.eval()


def settings_of(theirs: Mapping[str, Tensor]) -> AvseModel:
    """Sizes by the shapes of a few tensors. Raises ``UserError``."""
    filters, channels, kernel = _shape(theirs, "model.encoder.conv1d_U.weight", 3)
    bottleneck = _shape(theirs, "model.separator.bottleneck_conv1x1.weight", 3)[0]
    stages = _count(theirs, r"visual_frontend\.resnet\.layer(\d+)\.", first=1)
    widths = [_shape(theirs, f"visual_frontend.resnet.layer{i + 1}.conv1a.weight", 4)[0] for i in range(stages)]
    if kernel != KERNEL or filters != bottleneck or channels > 2:
        why = f"{channels} channels, {filters} filters of {kernel} samples, bottleneck {bottleneck}"
        right = f"1 or 2 channels, {KERNEL} samples, and as many filters as the bottleneck is wide"
        raise UserError("not the baseline's sizes", why, f"its code is right for {right}")
    return AvseModel(
        variant="avse4",
        channels=cast("Any", channels),
        filters=filters,
        kernel=kernel,
        stride=kernel // 2,
        bottleneck=bottleneck,
        hidden=_shape(theirs, "model.separator.tcn.0.1.net.0.weight", 3)[0],
        conv_kernel=_shape(theirs, "model.separator.tcn.0.1.net.3.net.0.weight", 3)[2],
        blocks=_count(theirs, r"model\.separator\.tcn\.0\.(\d+)\.net\.0\.", first=1),
        repeats=_count(theirs, r"model\.separator\.tcn\.(\d+)\."),
        video_stem=_shape(theirs, "visual_frontend.frontend3D.0.weight", 5)[0],
        video_channels=widths,
        video_layers=[2] * stages,
        visual_blocks=_count(theirs, r"model\.separator\.visual_conv\.(\d+)\."),
        video_drop=0.0,
        level_dbfs=None,
    )


def names_of(cfg: AvseModel) -> Names:
    """Where every tensor of theirs belongs."""
    names: Names = {}

    def put(theirs: str, ours: str, turn: Turn = torch.clone, parts: tuple[str, ...] = ("weight",)) -> None:
        names.update({f"{theirs}.{part}": (f"{ours}.{part}", turn) for part in parts})

    put("model.encoder.conv1d_U", "encoder")
    # (L, N), with overlap-add: one transposed convolution
    put("model.decoder.basis_signals", "decoder", lambda w: w.T[:, None])
    put("model.separator.layer_norm", "norm", parts=("weight", "bias"))
    put("model.separator.bottleneck_conv1x1", "inp")
    put("model.separator.mask_conv1x1", "out")
    for r in range(cfg.repeats):
        put(f"model.separator.ve_conv1x1.{r}", f"look.{r}")
        put(f"model.separator.tcn.{r}.0", f"join.{r}")
        for x in range(cfg.blocks):
            block, own = f"model.separator.tcn.{r}.{x + 1}.net", f"repeats.{r}.{x}"
            for at, name in LAYERS.items():
                put(f"{block}.{at}", f"{own}.{name}")
            for at, name in (("2", "norm1"), ("3.net.2", "norm2")):
                names[f"{block}.{at}.gamma"] = f"{own}.{name}.weight", _flat
                names[f"{block}.{at}.beta"] = f"{own}.{name}.bias", _flat
    for i in range(cfg.visual_blocks):
        block, own = f"model.separator.visual_conv.{i}.net", f"video.time.{i}"
        put(f"{block}.1", f"{own}.norm1", parts=NORM)
        put(f"{block}.4", f"{own}.norm2", parts=NORM)
        for at, name in (("2", "depth"), ("3", "act"), ("5", "out")):
            put(f"{block}.{at}", f"{own}.{name}")
    put("visual_frontend.frontend3D.0", "video.stem")
    put("visual_frontend.frontend3D.1", "video.norm", parts=NORM)
    for i in range(len(cfg.video_channels)):
        block, own = f"visual_frontend.resnet.layer{i + 1}", f"video.stages.{i}"
        for at, name in (("conv1a", "conv1"), ("conv2a", "conv2"), ("conv1b", "conv3"), ("conv2b", "conv4")):
            put(f"{block}.{at}", f"{own}.{name}")
        for at, name in (("bn1a", "norm1"), ("outbna", "norm2"), ("bn1b", "norm3"), ("outbnb", "norm4")):
            put(f"{block}.{at}", f"{own}.{name}", parts=NORM)
        if i:
            put(f"{block}.downsample", f"{own}.skip")
    return names


def _flat(weight: Tensor) -> Tensor:
    """(1, D, 1) -> (D,)."""
    return weight[0, :, 0]


def _shape(theirs: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in theirs:
        _refuse([name], [])
    if theirs[name].dim() != dims:
        raise UserError(f"{name} has the shape {tuple(theirs[name].shape)}", f"{dims} dimensions were expected")
    return tuple(theirs[name].shape)


def _count(theirs: Mapping[str, Tensor], pattern: str, first: int = 0) -> int:
    """How many members a numbered series has: one more than its highest number; holes are found by name later."""
    found = [int(m[1]) for m in map(re.compile(pattern).match, theirs) if m]
    if found and max(found) > 1000:
        _refuse([], [next(n for n in theirs if re.match(pattern, n))])
    return max(found, default=first - 1) + 1 - first


def _refuse(missing: list[str], unexpected: list[str]) -> NoReturn:
    parts = []
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        more = f" and {len(names) - LIMIT} more" if len(names) > LIMIT else ""
        parts += [f"{what}: {', '.join(names[:LIMIT])}{more}"] if names else []
    try_this = "pretrained.ckpt or pretrained_mono.ckpt of the challenge's baseline/avse4"
    raise UserError("these are not the AVSEC-4 baseline's weights", "; ".join(parts), try_this)
