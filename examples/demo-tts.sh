#!/usr/bin/env bash
# Synthesis from texts to a verdict, on the embedded synthesiser: what `make demo-tts` runs.
#   OUT=FOLDER  where everything goes (default runs/demo-tts); a rerun does not repeat finished steps
#   TINY=1      a few steps of everything, for tests
# The model knows digit strings and orders to devices. The embedded recogniser scores the speech; it is in no reward here.
# Of the 48 test texts 21 were among the first 16,000 in the model's training (another voice): this shows that the chain works.
# For results on new texts see tts-real.sh.
set -euo pipefail
out=${OUT:-runs/demo-tts}
few=(--steps 30 --set valid_every=15 --set save_every=15); eval_few=(--limit 24); [ -z "${TINY:-}" ] || { few=(--set steps=2 --set valid_every=2 --set save_every=2 --set valid_items=2 --set prompts_per_step=2 --set group=2); eval_few=(--limit 2); }
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
say() { printf '\n== %s\n' "$1" >&2; }
SECONDS=0

say "1/4 speak: the embedded synthesiser speaks a text, in the voice of a recording"
rlspeech speak "turn on the light in the kitchen" --out "$out/spoken"

say "2/4 the control: the same steps on the same texts with cross-entropy on recordings, no RL"
rlspeech rl --preset tts-demo-rl --set policy_weight=0 --set supervised_weight=1 --algo grpo --out "$out/sft" "${few[@]}"

say "3/4 rl: GRPO on every rollout, DiffRO on those above their group's mean"
rlspeech rl --preset tts-demo-rl --out "$out/rl" "${few[@]}"

say "4/4 eval: before, control and RL in a voice that is in no training set, beside the recordings and their copies through the codec"
rlspeech eval --task tts --model base=embedded --model "sft=$out/sft" --model "rl=$out/rl" --baseline base --out "$out/eval" "${eval_few[@]}"

say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Look at and listen to: $out/eval/report.html"
