#!/usr/bin/env bash
# How the embedded judge was made: a listener (recording -> sentences) and a sentiment model (sentences -> 1..5 stars).
# About an hour on one core.
#   DATA  folder with speech/ (one folder a corpus), noise/ and rir/ below it;  OUT  where things go (default runs/judge)
#   RECIPE, ENHANCER  mixtures with video and the audio-visual checkpoint whose outputs are learned from (default: the demo's, the embedded one)
#   TINY=1  a little of everything, for tests
# Held out from all training: the six speakers of LibriSpeech test-other; of ESC-10 the files whose name's CRC-32 is divisible by five;
# the two other collections of noise; the rooms named speechbrain.
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with speech/, noise/ and rir/}}
out=${OUT:-runs/judge}; here=$(cd "$(dirname "$0")" && pwd)
count=10000; vary=260; text_steps=2000; few=(); checks=()
[ -z "${TINY:-}" ] || { count=24; vary=20; text_steps=4; few=(--set steps=2 --set valid_items=2 --set batch=4); checks=(--items 1 --mixtures 4); }
mkdir -p "$out"

python - "$data" "$out" <<'PY'
import sys
import zlib
from pathlib import Path

data, out = map(Path, sys.argv[1:])


def files(*folders):
    return sorted(p for f in folders for p in (data / f).rglob("*.flac"))


def held(path):
    return zlib.crc32(path.name.encode()) % 5 == 0


esc = files("noise/esc10")
lists = {
    "speech": files(*(f"speech/{c}" for c in ("librispeech_train_clean_100", "vctk", "ljspeech", "cmu_arctic"))),
    "noise": [p for p in esc if not held(p)] + files("noise/long"),
    "rir": [p for p in files("rir") if "speechbrain" not in p.name],
    "held_speech": files("speech/librispeech_test_other"),
    "held_noise": [p for p in esc if held(p)] + files("noise/speechbrain", "noise/clearervoice"),
}
for name, paths in lists.items():
    (out / f"{name}.txt").write_text("".join(f"{p}\n" for p in paths))
    print(f"{len(paths)} files of {name}")
PY

python "$here/train-embedded-judge.py" recordings --speech "$out/speech.txt" --noise "$out/noise.txt" --rir "$out/rir.txt" \
  --count "$count" --out "$out/recordings"
# more kinds of noise than a few recordings contain
python "$here/train-embedded-judge.py" recordings --speech "$out/speech.txt" --noise "$out/noise.txt" --rir "$out/rir.txt" \
  --count "$((count / 4))" --vary "$vary" --seed 21 --out "$out/varied"
# an enhancer's errors: RL would exploit them first in a judge that was not trained on them
rlspeech prepare demo --mouths --out "$out/av"
python "$here/train-embedded-judge.py" outputs --recipe "${RECIPE:-$out/av/mix.json}" --model "${ENHANCER:-embedded}" \
  --count "$((count / 7))" --out "$out/outputs"
python - "$out" <<'PY'
import json
import sys
from pathlib import Path

out, rows = Path(sys.argv[1]), []
for part, times in (("recordings", 1), ("varied", 2), ("outputs", 2)):
    for line in (out / part / "manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        files = {k: f"{part}/{row[k]}" for k in ("audio_filepath", "target_filepath")}
        rows += [row | files | {"id": f"{part}_{row['id']}_{i}"} for i in range(times)]
(out / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
PY
python "$here/train-embedded-judge.py" sentiment --labels "$out/recordings/manifest.jsonl" --steps "$text_steps" --out "$out/sentiment"
rlspeech pretrain --preset listener-tiny --data "$out/manifest.jsonl" --out "$out/listener" "${few[@]}"

# half precision, without the head that only training uses
python - "$(ls -d "$out"/listener/checkpoints/step_* | sort | tail -n 1)" "$out/judge-listener" <<'PY'
import sys
from pathlib import Path

from rlspeech.models.listener import load_listener, save_listener

model, about = load_listener(sys.argv[1])
save_listener(Path(sys.argv[2]), model, facts=about["facts"], half=True)
PY
python "$here/train-embedded-judge.py" check --speech "$out/held_speech.txt" --noise "$out/held_noise.txt" \
  --listener "$out/judge-listener" --sentiment "$out/sentiment" "${checks[@]}"
echo "the judge is in $out/judge-listener and $out/sentiment; the package's own parts lie in rlspeech/assets/listener and rlspeech/assets/sentiment"
