#!/usr/bin/env bash
# The main job, from raw audio to a verdict, on the embedded corpus and checkpoint: what `make demo` runs.
#   OUT=FOLDER  where everything goes (default runs/demo); a rerun does not repeat finished steps
#   TINY=1      a few steps of everything, for tests
set -euo pipefail
out=${OUT:-runs/demo}
few=(); [ -z "${TINY:-}" ] || few=(--set steps=2 --set valid_every=2 --set save_every=2 --set valid_items=2)
rl_few=(); [ -z "${TINY:-}" ] || rl_few=("${few[@]}" --set prompts_per_step=2 --set group=2 --set clip_s=1)
[ -z "${TINY:-}" ] || few+=(--set batch=2 --set mixing.clip_s=1)
eval_few=(); [ -z "${TINY:-}" ] || eval_few=(--set limit=2 --metric estoi --metric si_sdr)
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
say() { printf '\n== %s\n' "$1" >&2; }
SECONDS=0

say "1/5 prepare: the embedded corpus (synthetic voices, coded noise) becomes manifests and held-out mixtures"
rlspeech prepare demo --out "$out/data"

say "2/5 pretrain: the embedded checkpoint, trained on real speech, is adapted to this corpus with supervision"
rlspeech pretrain --preset flowse-demo-pretrain --data "$out/data/mix.json" --valid "$out/data/valid.jsonl" --out "$out/pretrained" "${few[@]}"

say "3/5 reward: scores of the unprocessed validation mixtures"
rlspeech reward "$out/data/valid.jsonl" --reward estoi --reward si_sdr --system input --out "$out/scores"

say "4/5 rl: GRPO with structured exploration"
rlspeech rl --preset flowse-demo-rl --model "$out/pretrained" --data "$out/data/mix.json" --valid "$out/data/valid.jsonl" --out "$out/rl" "${rl_few[@]}"

say "5/5 eval: input, pretrained and after RL on voices, texts and noises that are in no training set"
rlspeech eval --data "$out/data/test.jsonl" --model "pretrained=$out/pretrained" --model "rl=$out/rl" --baseline pretrained --out "$out/eval" "${eval_few[@]}"

say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Look at and listen to: $out/eval/report.html"
