#!/usr/bin/env bash
# How the embedded audio-visual checkpoint was made: real speech of some 250 speakers, real noise, competing talkers, drawn mouths.
# About an hour on one core. A model trained only on drawn mouths cannot read real faces: see the results in examples/README.md.
#   DATA  folder with speech/ (one folder a corpus) and noise/ below it;  OUT  where runs go (default runs/embedded-avse)
#   TINY=1  a few steps of everything, for tests
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with speech/ and noise/}}
out=${OUT:-runs/embedded-avse}
few=(); count=60; [ -z "${TINY:-}" ] || { few=(--set steps=2 --set valid_items=2 --set batch=2); count=3; }
clean=(); for c in ${CLEAN:-librispeech_train_clean_100 vctk ljspeech cmu_arctic common_voice picovoice_commands}; do clean+=(--clean "$data/speech/$c"); done
mix=(--snr 0 20 --level -30 -20 --talker 0.7 --mouths)

rlspeech prepare mix "${clean[@]}" --noise "$data/noise/esc10" --noise "$data/noise/long" "${mix[@]}" --out "$out/data"
# held out: the speakers of LibriSpeech test-other as targets and as competing talkers, the noises of two other collections
for part in valid test; do
  seed=$([ "$part" = valid ] && echo 11 || echo 12)
  rlspeech prepare mix --clean "$data/speech/librispeech_test_other" --noise "$data/noise/speechbrain" --noise "$data/noise/clearervoice" \
    "${mix[@]}" --render "$count" --render-s 4 --seed "$seed" --out "$out/$part"
done

rlspeech pretrain --preset avse-tiny --data "$out/data/mix.json" --valid "$out/valid/manifest.jsonl" --out "$out/run" "${few[@]}"
rlspeech eval --task avse --data "$out/test/manifest.jsonl" --model "embedded=$out/run" --shuffled embedded --baseline embedded --out "$out/eval"

# half precision
python - "$out/run" "$out/avse" <<'PY'
import sys
from pathlib import Path
from rlspeech.models.hub import load_model, save_model
model, config = load_model(sys.argv[1], "avse")
save_model(Path(sys.argv[2]), model, "avse", facts=config["facts"], half=True)
PY
echo "the checkpoint is in $out/avse; the package's own lies in rlspeech/assets/avse"
