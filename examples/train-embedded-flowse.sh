#!/usr/bin/env bash
# How the embedded flowse checkpoint was made: real speech and noise, two phases of pretraining, about an hour and a quarter on one core.
#   DATA  folder with speech/ (one folder a corpus), noise/ and rir/ below it;  OUT  where runs go (default runs/embedded)
#   TINY=1  a few steps of everything, for tests
# Phase 1 trains all times of the flow (almost) alike. Phase 2 concentrates on early times, where the input decides and where a step
# from t = 0 starts, because a model of this size is best with few steps (see examples/README.md).
# The shipped weights: phase 1 was the first 1000 steps of a schedule laid out for 3600, then phase 2 as below.
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with speech/, noise/ and rir/}}
out=${OUT:-runs/embedded}
few=(); count=60; [ -z "${TINY:-}" ] || { few=(--set steps=2 --set valid_items=2); count=4; }
clean=(); for c in ${CLEAN:-librispeech_train_clean_100 vctk ljspeech cmu_arctic common_voice picovoice_commands}; do clean+=(--clean "$data/speech/$c"); done

rlspeech prepare mix "${clean[@]}" --noise "$data/noise/esc10" --noise "$data/noise/long" --rir "$data/rir" \
  --snr -5 15 --level -35 -15 --reverb 0.15 --out "$out/data"
# held out: six speakers of LibriSpeech test-other, twelve noises of two other collections, no rooms
rlspeech prepare mix --clean "$data/speech/librispeech_test_other" --noise "$data/noise/speechbrain" --noise "$data/noise/clearervoice" \
  --snr -5 15 --level -35 -15 --render "$count" --render-s 4 --seed 1 --out "$out/heldout"

rlspeech pretrain --preset flowse-tiny --data "$out/data/mix.json" --set steps=1000 --out "$out/phase1" "${few[@]}"
rlspeech pretrain --data "$out/data/mix.json" --init "$out/phase1" --set model.time_power=4 --set model.nfe=1 --set batch=8 --set lr=1.2e-3 \
  --set warmup=100 --set steps=2800 --seed 1 --out "$out/phase2" "${few[@]}"

rlspeech eval --data "$out/heldout/manifest.jsonl" --model "embedded=$out/phase2" --out "$out/eval"

# half precision, 13.7 MB
python - "$out/phase2" "$out/flowse" <<'PY'
import sys
from pathlib import Path
from rlspeech.models.hub import load_model, save_model
model, config = load_model(sys.argv[1], "flowse")
save_model(Path(sys.argv[2]), model, "flowse", facts=config["facts"], half=True)
PY
echo "the checkpoint is in $out/flowse; the package's own lies in rlspeech/assets/flowse"
