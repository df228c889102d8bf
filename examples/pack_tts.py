"""The three checkpoints of train-embedded-tts.sh as the package ships them: half precision, the codec's name 'embedded' in the other two.

python examples/pack_tts.py runs/embedded-tts --out rlspeech/assets
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlspeech.models.codec.codec import load_codec
from rlspeech.models.codec.lm import load_codec_lm, save_codec_lm
from rlspeech.models.hub import read_config, resolve, save_model
from rlspeech.models.token_reward import load_token_reward, save_token_reward

KEPT = ("step", "steps", "parameters", "metrics")  # of what a run notes; where its data lay is nobody's business


def facts_of(about: dict[str, Any]) -> dict[str, Any]:
    """What is known of a run, without its paths."""
    return {k: v for k, v in about.get("facts", {}).items() if k in KEPT} | {"recipe": "examples/train-embedded-tts.sh"}


def main() -> None:
    """Write codec, tts and token-reward."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for name in ("codec", "token-reward", "tts"):
        source, target = args.runs / name, args.out / name
        if not source.exists():
            print(f"no {source}: left out")
            continue
        target.mkdir(parents=True, exist_ok=True)
        if name == "codec":
            codec: Any = load_codec(str(source))
            save_model(
                target,
                codec.net,
                "codec",
                facts=facts_of(read_config(resolve(str(source), "codec"), "codec")),
                half=True,
            )
        elif name == "token-reward":
            reward, about = load_token_reward(str(source))
            reward.cfg = reward.cfg.model_copy(update={"codec": "embedded"})
            save_token_reward(target, reward, facts=facts_of(about), half=True)
        else:
            model, about = load_codec_lm(str(source))
            model.layout = replace(model.layout, codec="embedded")
            model.cfg = model.cfg and model.cfg.model_copy(update={"codec": "embedded"})
            save_codec_lm(target, model, facts=facts_of(about), half=True)
        (target / "state.json").unlink(missing_ok=True)  # a trainer's, copied with the tokenizer
        print(target, round(sum(f.stat().st_size for f in target.iterdir()) / 1e6, 1), "MB")


if __name__ == "__main__":
    main()
