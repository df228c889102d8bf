#!/usr/bin/env bash
# How the embedded synthesiser was made: a codec, a token-to-text reward that reads its tokens, and a codec language model that writes them.
#   DATA  folder with manifest.jsonl, manifest_digits.jsonl and speech/;  OUT  where runs go (default runs/embedded-tts)
#   MATERIAL  output of asr_material.py, to reuse it
#   TINY=1  a few steps of everything, for tests.  Needs the program flite.
# The codec is trained on all recordings; the other two know a closed domain: digit strings, orders to devices and short sentences. The
# language model is trained on two voices at one pace, so it has to learn the words and little else; the voice comes from the prompt,
# through the codec. About two hours on one core. The shipped weights had their steps in several stretches (assets/*/README.md).
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with manifest.jsonl and manifest_digits.jsonl}}
out=${OUT:-runs/embedded-tts}; material=${MATERIAL:-$out/material}
here=$(cd "$(dirname "$0")" && pwd)
few=(); size=(); rows=(); small=()
if [ -n "${TINY:-}" ]; then
  few=(--set steps=2 --set valid_items=4 --set batch=2); size=(--spoken 24 --strings 24); rows=(--train 8 --rl 4 --each 1)
  small=(--set tts.dim=32 --set tts.layers=1 --set tts.heads=2 --set tts.ff=64)
fi

[ -f "$material/test.jsonl" ] || python "$here/asr_material.py" --data "$data" --out "$material" "${size[@]}"
python "$here/tts_sets.py" --material "$material" --out "$out/sets" "${rows[@]}"
for set in rl valid test; do
  rlspeech prepare tts "$out/sets/$set.jsonl" --prompt-s 0.8 3 --out "$out/data/$set"
done
rlspeech pretrain --preset codec-tiny --data "$material/train.jsonl" --valid "$material/valid.jsonl" --out "$out/codec" "${few[@]}"
rlspeech pretrain --preset token-reward-tiny --data "$out/sets/reward.jsonl" --valid "$out/data/valid/valid.jsonl" \
  --set token_reward.codec="$out/codec" --out "$out/token-reward" "${few[@]}"
rlspeech pretrain --preset tts-tiny --data "$out/sets/train.jsonl" --valid "$out/data/rl/rl.jsonl" \
  --set tts.codec="$out/codec" --out "$out/tts" "${few[@]}" "${small[@]}"
rlspeech eval --task tts --data "$out/data/test/test.jsonl" --model "embedded=$out/tts" --out "$out/eval" ${TINY:+--limit 4}
echo "codec, token-reward and tts are in $out; the package's own lie in rlspeech/assets"
