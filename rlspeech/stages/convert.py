"""``rlspeech convert``: other people's weights as a checkpoint folder of ours.

    rlspeech convert avse4 pretrained.ckpt --out runs/avse4-baseline
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.types import UserError

__all__ = ["LAYOUTS", "run"]

LAYOUTS = ("avse4",)


def run(layout: str, source: str, out: str | None, *, json_mode: bool = False) -> dict[str, Any]:
    """Read a file of weights, write a checkpoint folder; complete or not at all.

    Args:
        layout: whose names the weights have; one of ``LAYOUTS``.
        source: file of weights.
        out: folder to write.

    Returns:
        the folder, the number of parameters and the inferred settings.

    Raises:
        UserError: an unknown layout, a file that cannot be read or does not fit, a folder that is there already.
    """
    if layout not in LAYOUTS:
        raise UserError(f"no layout is called {layout!r}", f"there are: {', '.join(LAYOUTS)}", "rlspeech convert avse4 FILE --out FOLDER")
    if out is None:
        raise UserError("no output folder", "", "--out FOLDER")
    folder = Path(out).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already", "", "name another folder with --out")
    from rlspeech.models.avse_import import convert_avse4, read_avse4
    from rlspeech.models.hub import save_avse

    model = convert_avse4(read_avse4(source))
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_avse(work, model, facts={"stage": "convert", "layout": layout, "source": Path(source).name})
        work.chmod(0o755)  # a checkpoint is as readable as any folder
        os.replace(work, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}", str(error)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    parameters, cfg = sum(p.numel() for p in model.parameters()), model.cfg
    log.say(f"{parameters / 1e6:.2f} M parameters, {cfg.channels} channel{'s' if cfg.channels > 1 else ''}, {folder}")
    log.say(f"next: rlspeech eval --task avse --model {folder} --data test.jsonl")
    return {"checkpoint": str(folder), "parameters": parameters, "model": cfg.model_dump()}
