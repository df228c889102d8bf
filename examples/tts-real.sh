#!/usr/bin/env bash
# GRPO, DiffRO, their sum, and both with sample filtering on a codec language model, against SFT for the same number of steps: the arms
# of arXiv 2509.18569. The test texts and voices are in no training set; a recogniser that is in no reward transcribes the speech.
#   DATA   folder with manifest.jsonl, manifest_digits.jsonl and speech/;  OUT  where everything goes (default runs/tts-real)
#   MODEL  the synthesiser to start from (default embedded);  REWARD  its token-to-text reward (default embedded), which is first trained
#          to grade the model's own speech (tts_quality.py): without that it reads speech on which recognisers fail
#   SEEDS  default "0 1 2";  STEPS  default 40;  LONG  steps of the run for stability (default 1500; 0: leave it out)
#   SETS   output of tts_sets.py and prepare tts, to reuse it, with TRAIN, its train.jsonl;  MATERIAL  the same of asr_material.py
#   TINY=1 a few steps of everything, for tests.  Needs the program flite and the Python package pocketsphinx (the judge).
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with manifest.jsonl and manifest_digits.jsonl}}
out=${OUT:-runs/tts-real}; model=${MODEL:-embedded}; reward=${REWARD:-embedded}; seeds=${SEEDS:-0 1 2}; steps=${STEPS:-40}; long=${LONG:-1500}
material=${MATERIAL:-$out/material}; sets=${SETS:-$out/data}
here=$(cd "$(dirname "$0")" && pwd)
few=(); size=(); rows=(); quality=(); eval_few=()
if [ -n "${TINY:-}" ]; then
  size=(--spoken 24 --strings 24); rows=(--train 8 --rl 4 --each 1); quality=(--count 4 --steps 2); seeds=0; steps=2; long=3; eval_few=(--limit 4)
  few=(--set valid_items=2 --set prompts_per_step=2 --set group=2 --set valid_every=2 --set save_every=2)
fi
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
if [ ! -f "$sets/test/test.jsonl" ]; then
  [ -f "$material/test.jsonl" ] || python "$here/asr_material.py" --data "$data" --out "$material" "${size[@]}"
  python "$here/tts_sets.py" --material "$material" --out "$out/sets" "${rows[@]}"
  for set in rl valid test; do rlspeech prepare tts "$out/sets/$set.jsonl" --prompt-s 0.8 3 --out "$sets/$set"; done
fi

if [ ! -f "$out/reward/config.json" ]; then
  python "$here/tts_quality.py" --model "$model" --reward "$reward" --data "${TRAIN:-$out/sets/train.jsonl}" --out "$out/reward" "${quality[@]}"
fi
reward=$out/reward

tune() { # NAME SEED OPTIONS...
  local name=$1 seed=$2; shift 2
  rlspeech rl --preset tts-demo-rl --model "$model" --data "$sets/rl/rl.jsonl" --valid "$sets/valid/valid.jsonl" --set diffro.reward="$reward" \
    --set "diffro.attribute_weights={quality: 0.5}" \
    --steps "$steps" --set valid_every="$steps" --set save_every="$steps" --seed "$seed" --out "$out/$name" "${few[@]}" "$@"
}
r1="{name: \"token_posterior[model=$reward,nll_scale=1]\", scale: none}, {name: \"token_quality[model=$reward]\", scale: none, weight: 0.25}"
r2='{name: tts_duration, scale: none}'
r3='{name: tts_token_diversity, scale: none, weight: 0.5}, {name: tts_pitch_std, scale: none, weight: 0.5}'
mkdir -p "$out"
watch='guards: [tts_cer]'  # watched only, without a limit: every arm runs to its end
printf '%s\n' "rewards: [$r1]" "$watch" > "$out/r1.yaml"
printf '%s\n' "rewards: [$r1, $r2]" "$watch" > "$out/r12.yaml"
printf '%s\n' "rewards: [$r1, $r2, $r3]" "$watch" > "$out/r123.yaml"
models=(--model "base=$model")
for seed in $seeds; do
  tune "sft-$seed" "$seed" --algo grpo --set policy_weight=0 --set supervised_weight=1
  tune "grpo-$seed" "$seed" --algo grpo --config "$out/r1.yaml"
  tune "diffro-$seed" "$seed" --algo diffro --config "$out/r1.yaml"
  tune "sum-$seed" "$seed" --algo grpo+diffro --config "$out/r1.yaml" --set diffro.on=all
  for rewards in r1 r12 r123; do tune "$rewards-$seed" "$seed" --algo grpo+diffro --config "$out/$rewards.yaml"; done
  for arm in sft grpo diffro sum r1 r12 r123; do models+=(--model "$arm-$seed=$out/$arm-$seed"); done
done
hear() { rlspeech eval --task tts --data "$sets/test/test.jsonl" --baseline base --recogniser tts_judge:listen "${eval_few[@]}" "$@"; }
if [ "$long" != 0 ]; then # is GRPO alone stable over so many steps (small ones, at a rate to match), or does its guard stop it?
  tune long-0 0 --algo grpo --config "$out/r1.yaml" --steps "$long" --set prompts_per_step=2 --set group=4 --set lr=3e-5 --set lr_schedule=constant \
    --set valid_every=$((long / 10 + 1)) --set save_every=$((long / 10 + 1)) --set valid_draws=4 --guard tts_cer=0.03 --guard tts_stopped=0.05
  models+=(--model "long-0=$out/long-0")
fi
hear "${models[@]}" --out "$out/eval"
evals=("$out/eval")
for draw in $seeds; do # the arms are evaluated once a seed, and so is the model that they start from
  [ "$draw" = 0 ] || { hear --model "base=$model" --seed "$draw" --out "$out/eval-$draw"; evals+=("$out/eval-$draw"); }
done
for against in base sft grpo diffro; do python "$here/tts_seeds.py" "${evals[@]}" --data "$sets/test/test.jsonl" --baseline "$against"; done
echo "the report is $out/eval/report.html"
