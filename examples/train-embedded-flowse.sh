#!/usr/bin/env bash
# How the embedded flowse checkpoint was made: real speech and noise, two and a half hours on one core.
#   DATA  folder with speech/ (one folder a corpus), noise/ and rir/ below it;  OUT  where runs go (default runs/embedded)
#   OTHERS  "name=folder ..." of other programs' outputs for the held-out inputs, for the same table;  TINY=1  a few steps, for tests
# The predictor first, then the flow behind it by the same loss (model.objective=regression). By flow matching (875 steps at prior_sigma
# 0.487, 250 at 0.1) the flow took 3 dB of SI-SDR from its predictor and gave .01 of OVRL.
# The shipped weights: in the first 6000 steps what is left of the noise weighed no more than what is missing of the speech
# (UNDER_SUPPRESSION = 0 in models/flow.py). All in bf16.
# An enhancer learns the noise of its targets: recordings whose pauses lie less than 36 dB, later 43 dB, below their speech are left out.
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with speech/, noise/ and rir/}}
out=${OUT:-runs/embedded}
few=(); count=80; [ -z "${TINY:-}" ] || { few=(--set steps=2 --set valid_items=2); count=4; }
clean=(); for c in ${CLEAN:-librispeech_train_clean_100 librispeech_other vctk ljspeech cmu_arctic common_voice picovoice_commands speechocean762 speechbrain}; do clean+=(--clean "$data/speech/$c"); done

mix() { # NAME PAUSE_DB LOW HIGH: a recipe in which every recording is drawn as often as it holds clips of 3 s
  rlspeech prepare mix "${clean[@]}" --noise "$data/noise/esc10" --noise "$data/noise/long" --rir "$data/rir" --snr "$3" "$4" --level -35 -15 \
    --reverb 0.2 --set limits.pause_db="$2" --set mixing.clip_s=3 --set mixing.clean=0.07 --set mixing.coloured=0.15 --set mixing.babble=0.1 \
    --set mixing.second=0.35 --set 'mixing.speed=[0.87,1.15]' --set mixing.eq_db=4 --out "$out/$1"
  python - "$out/$1" <<'PY'
import json, math, sys
from pathlib import Path
folder = Path(sys.argv[1])
rows = [json.loads(line) for line in (folder / "clean.jsonl").read_text(encoding="utf-8").splitlines()]
draws = [row | {"id": f"{row['id']}#{i}"} for row in rows for i in range(math.ceil(row["duration"] / 3))]
(folder / "draws.jsonl").write_text("".join(json.dumps(row) + "\n" for row in draws), encoding="utf-8")
recipe = json.loads((folder / "mix.json").read_text(encoding="utf-8"))
(folder / "draws.json").write_text(json.dumps(recipe | {"clean": "draws.jsonl"}), encoding="utf-8")
PY
}
mix data 36 -5 25
mix data-43 43 -8 23
# held out: LibriSpeech test-other (four of its speakers are clean enough), twelve noises of two other collections, no rooms
rlspeech prepare mix --clean "$data/speech/librispeech_test_other" --noise "$data/noise/speechbrain" --noise "$data/noise/clearervoice" \
  --snr -5 25 --level -35 -15 --set limits.pause_db=36 --render "$count" --render-s 4 --seed 2 --out "$out/heldout"

train() { rlspeech pretrain --preset flowse-tiny --set precision=bf16 "$@" --valid "$out/heldout/manifest.jsonl" "${few[@]}"; }
alone="--set flow_weight=0"
train $alone --data "$out/data/draws.json" --out "$out/first"
train $alone --data "$out/data/draws.json" --init "$out/first" --set steps=1100 --set lr=5e-4 --set warmup=30 --set ema=0.995 --seed 2 --out "$out/second"
train $alone --data "$out/data-43/draws.json" --init "$out/second" --set steps=4600 --set lr=8e-4 --set warmup=50 --set ema=0.998 --seed 3 --out "$out/third"
# the third is the best at low ratios and the second at high ones: the mean of their weights lies between
python - "$out/second" "$out/third" "$out/predictor" <<'PY'
import sys
from pathlib import Path
from rlspeech.models.hub import load_model, save_model
(one, config), (two, _) = (load_model(name, "flowse") for name in sys.argv[1:3])
other = two.state_dict()
one.load_state_dict({k: (v + other[k]) / 2 for k, v in one.state_dict().items()})
save_model(Path(sys.argv[3]), one, "flowse", facts=config["facts"])
PY
train --set predictor_weight=0 --data "$out/data/draws.json" --init "$out/predictor" --set steps=700 --set lr=6e-4 --set warmup=50 --set ema=0.99 \
  --seed 4 --out "$out/flow"

systems=(); for s in ${OTHERS:-}; do systems+=(--system "$s"); done
rlspeech eval --data "$out/heldout/manifest.jsonl" --model "second=$out/second" --model "third=$out/third" --model "predictor=$out/predictor" --model "embedded=$out/flow" "${systems[@]}" --out "$out/eval"

# half precision
python - "$out/flow" "$out/flowse" <<'PY'
import sys
from pathlib import Path
from rlspeech.models.hub import load_model, save_model
model, config = load_model(sys.argv[1], "flowse")
save_model(Path(sys.argv[2]), model, "flowse", facts=config["facts"], half=True)
PY
echo "the checkpoint is in $out/flowse; the package's own lies in rlspeech/assets/flowse"
