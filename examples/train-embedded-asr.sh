#!/usr/bin/env bash
# How the embedded recogniser was made: digits, device names, GRID and read sentences by real speakers, and flite's voices for volume.
#   DATA  folder with manifest.jsonl, manifest_digits.jsonl, speech/ and noise/;  OUT  where runs go (default runs/embedded-asr)
#   TINY=1  a few steps of everything, for tests.  Needs the program flite.
# First the encoder alone (CTC, half the time a step), then encoder and language model together, then a little long speech and sound
# without speech (1.5 % of the rows). Without the latter an empty transcript has no probability that rewards could raise.
# An hour and a half on one core. The shipped weights: 1500 steps of both, 1500 of the encoder, 1941 of both, 300 with long and empty
# rows. The first stretch taught the language model its grammar and the encoder very little, so here the encoder is trained first.
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with manifest.jsonl, manifest_digits.jsonl and noise/}}
out=${OUT:-runs/embedded-asr}
here=$(cd "$(dirname "$0")" && pwd)
few=(); size=(); long=500; empty=60
[ -z "${TINY:-}" ] || { few=(--set steps=2 --set valid_items=4 --set batch=2); size=(--spoken 6 --strings 6); long=2; empty=1; }
noise=(--noise "$data/noise/esc10" --noise "$data/noise/long")

[ -f "$out/material/test.jsonl" ] || python "$here/asr_material.py" --data "$data" --out "$out/material" "${size[@]}"
rlspeech prepare mix --clean "$out/material/train.jsonl" "${noise[@]}" --snr 8 40 --level -35 -15 --set limits.bandwidth=0 --out "$out/data"
rlspeech prepare nonspeech "${noise[@]}" --clean "$out/material/train.jsonl" --count "$empty" --max-s 12 --seed 11 --out "$out/empty"
python "$here/asr_sets.py" long "$out/material/train.jsonl" --out "$out/long" --count "$long" --seed 12
rlspeech prepare join "$out/material/train.jsonl" "$out/empty/manifest.jsonl" "$out/long/manifest.jsonl" --out "$out/all"
rlspeech prepare mix --clean "$out/all/manifest.jsonl" "${noise[@]}" --snr 5 40 --level -35 -15 --set limits.bandwidth=0 --out "$out/data-all"

rlspeech pretrain --preset asr-tiny --data "$out/data/mix.json" --valid "$out/material/valid.jsonl" --set ctc_weight=1 --set steps=3000 \
  --out "$out/ear" "${few[@]}"
rlspeech pretrain --preset asr-tiny --data "$out/data/mix.json" --valid "$out/material/valid.jsonl" --init "$out/ear" --set steps=2000 \
  --set lr=1e-3 --set warmup=100 --out "$out/both" "${few[@]}"
rlspeech pretrain --preset asr-tiny --data "$out/data-all/mix.json" --valid "$out/material/valid.jsonl" --init "$out/both" --set steps=300 \
  --set lr=6e-4 --set warmup=20 --out "$out/last" "${few[@]}"

# half precision, 12 MB
python - "$out/last" "$out/asr" <<'PY'
import sys
from pathlib import Path
from rlspeech.models.recogniser import load_recogniser, save_recogniser
model, about = load_recogniser(sys.argv[1])
save_recogniser(Path(sys.argv[2]), model, facts=about["facts"], half=True)
PY
rlspeech eval --task asr --data "$out/material/test.jsonl" --model "embedded=$out/asr" --by kind --out "$out/eval"
echo "the checkpoint is in $out/asr; the package's own lies in rlspeech/assets/asr"
