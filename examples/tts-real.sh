#!/usr/bin/env bash
# GRPO, DiffRO, their sum, and both with sample filtering on a codec language model, against SFT for the same number of steps: the arms
# of arXiv 2509.18569. On stored samples, as many as GRPO rolls out: DPO, and SFT on each text's best (RAFT); controls of one seed are DPO
# on pairs drawn at random, and with the recording as the winner. Trained, validated and compared where the speech is used, at the
# temperature of `speak`; the start is also drawn at temperature 1, and as the best of eight draws by the reward, which needs no training.
# The test texts and voices are in no training set; a recogniser that is in no reward transcribes the speech.
#   DATA   folder with manifest.jsonl, manifest_digits.jsonl and speech/;  OUT  where everything goes (default runs/tts-real)
#   MODEL  the synthesiser to start from (default embedded);  REWARD  its token-to-text reward (default embedded), which is first trained
#          to grade the model's own speech (tts_quality.py): without that it reads speech on which recognisers fail
#   SEEDS  default "0 1 2";  STEPS  default 40;  ARMS  default "sft grpo diffro sum r1 r12 r123 dpo raft"
#   ONCE   arms of the first seed alone (default "random recorded")
#   LONG   steps of the run for stability (default 1500; 0: leave it out);  BEST  of the arms, whose best of eight is measured too (default r1)
#   JOBS   runs side by side, a core each (default 2)
#   SETS   output of tts_sets.py and prepare tts, to reuse it, with TRAIN, its train.jsonl;  MATERIAL  the same of asr_material.py
#   TINY=1 a few steps of everything, for tests.  Needs the program flite and the Python package pocketsphinx (the judge).
# The same command goes on where it was ended.
set -euo pipefail
data=${DATA:-${RLSPEECH_REALDATA:?set DATA to a folder with manifest.jsonl and manifest_digits.jsonl}}
out=${OUT:-runs/tts-real}; model=${MODEL:-embedded}; reward=${REWARD:-embedded}; seeds=${SEEDS:-0 1 2}; steps=${STEPS:-40}; long=${LONG:-1500}
arms=${ARMS:-sft grpo diffro sum r1 r12 r123 dpo raft}; once=${ONCE-random recorded}; best=${BEST-r1}; jobs=${JOBS:-2}
material=${MATERIAL:-$out/material}; sets=${SETS:-$out/data}
here=$(cd "$(dirname "$0")" && pwd)
few=(); fewer=(); size=(); rows=(--say 8000); quality=(); eval_few=()
if [ -n "${TINY:-}" ]; then
  size=(--spoken 24 --strings 24); rows=(--train 8 --rl 4 --each 1); quality=(--count 4 --steps 2); seeds=0; steps=2; long=3; eval_few=(--limit 2)
  few=(--set valid_items=2 --set prompts_per_step=2 --set group=2 --set valid_every=2 --set save_every=2)
  fewer=(--set valid_items=2 --set prompts_per_step=2 --set valid_every=2 --set save_every=2)
fi
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ ! -f "$sets/test/test.jsonl" ]; then
  [ -f "$material/test.jsonl" ] || python "$here/asr_material.py" --data "$data" --out "$material" "${size[@]}"
  python "$here/tts_sets.py" --material "$material" --out "$out/sets" "${rows[@]}" --jobs "$jobs"
  for set in rl valid test; do rlspeech prepare tts "$out/sets/$set.jsonl" --prompt-s 0.8 3 --out "$sets/$set"; done
fi

if [ ! -f "$out/reward/config.json" ]; then
  python "$here/tts_quality.py" --model "$model" --reward "$reward" --data "${TRAIN:-$out/sets/train.jsonl}" --out "$out/reward" "${quality[@]}"
fi
reward=$out/reward

mkdir -p "$out"
rm -f "$out"/*.failed
trap 'jobs -p | xargs -r kill 2> /dev/null || true' EXIT
side() { # NAME COMMAND...: run it beside others, its output in a file
  local name=$1; shift
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do sleep 0.2; done
  { "$@" > "$out/$name.log" 2>&1 || touch "$out/$name.failed"; } &
  echo "$(date +%T) $name"
}
finish() { # wait for all of them; `wait PID` does not know what has ended a while ago
  local failed; wait
  for failed in "$out"/*.failed; do
    [ -e "$failed" ] || continue
    tail -20 "${failed%.failed}.log"; echo "$(basename "${failed%.failed}") failed"; exit 1
  done
}

tune() { # NAME SEED OPTIONS...
  local name=$1 seed=$2; shift 2
  side "$name" rlspeech rl --preset tts-demo-rl --model "$model" --data "$sets/rl/rl.jsonl" --valid "$sets/valid/valid.jsonl" \
    --set workers=0 \
    --steps "$steps" --set valid_every="$steps" --set save_every="$steps" --seed "$seed" --out "$out/$name" "${few[@]}" "$@"
}
prefer() { # NAME SEED OPTIONS...: one epoch of pairs of the stored samples
  local name=$1 seed=$2; shift 2
  side "$name" rlspeech rl --task tts --algo dpo --model "$model" --samples "$out/samples" --valid "$sets/valid/valid.jsonl" \
    --config "$out/pairs.yaml" --set workers=0 --set prompts_per_step=8 --set micro_batch=4 --set lr=1e-4 --set valid_items=4 \
    --steps "$steps" --set valid_every="$steps" --set save_every="$steps" --seed "$seed" --out "$out/$name" "${fewer[@]}" "$@"
}
posterior="token_posterior[model=$reward,nll_scale=1]"
r1="{name: \"$posterior\", scale: none}, {name: \"token_quality[model=$reward]\", scale: none, weight: 0.25}"
r2='{name: tts_duration, scale: none}'
r3='{name: tts_token_diversity, scale: none, weight: 0.5}, {name: tts_pitch_std, scale: none, weight: 0.5}'
watch='guards: [tts_cer]'  # watched only, without a limit: every arm runs to its end
printf '%s\n' "rewards: [$r1]" "$watch" > "$out/r1.yaml"
printf '%s\n' "rewards: [$r1, $r2]" "$watch" > "$out/r12.yaml"
printf '%s\n' "rewards: [$r1, $r2, $r3]" "$watch" > "$out/r123.yaml"
printf '%s\n' "rewards: [$r1, {name: tts_cer, scale: none}]" "$watch" > "$out/pairs.yaml"
printf '%s\n' "diffro: {reward: $reward, attribute_weights: {quality: 0.5}}" > "$out/soft.yaml"
grpo="--algo grpo --set diffro.tau=1" both="--algo grpo+diffro --config $out/soft.yaml"  # tau is the preset's, of DiffRO
declare -A how=([sft]="$grpo --set policy_weight=0 --set supervised_weight=1" [grpo]="$grpo --config $out/r1.yaml"
  [diffro]="--algo diffro --set advantage_std=group --config $out/soft.yaml --config $out/r1.yaml" [sum]="$both --config $out/r1.yaml --set diffro.on=all"
  [r1]="$both --config $out/r1.yaml" [r12]="$both --config $out/r12.yaml" [r123]="$both --config $out/r123.yaml"
  [dpo]="" [raft]="--set dpo.loss=sft" [random]="--set dpo.pairs=random" [recorded]="--set dpo.winner=reference")
if [[ " $arms $once " =~ " "(dpo|raft|random|recorded)" " ]]; then
  rlspeech sample --task tts --model "$model" --data "$sets/rl/rl.jsonl" --draws 8 --limit $((8 * steps)) --out "$out/samples"
  rlspeech reward "$out/samples" --reward "$posterior" --reward "token_quality[model=$reward]" --reward tts_cer
fi
all_of() { [ "$1" != "${seeds%% *}" ] && echo "$arms" || echo "$arms $once"; } # SEED: its arms
for seed in $seeds; do
  for arm in $(all_of "$seed"); do
    read -ra options <<< "${how[$arm]}"
    case $arm in dpo | raft | random | recorded) prefer "$arm-$seed" "$seed" "${options[@]}" ;; *) tune "$arm-$seed" "$seed" "${options[@]}" ;; esac
  done
done
finish
if [ "$long" != 0 ]; then # is GRPO alone stable over so many steps (small ones, at a rate to match), or does its guard stop it?
  tune long-0 0 $grpo --config "$out/r1.yaml" --steps "$long" --set prompts_per_step=2 --set group=4 --set lr=3e-5 --set lr_schedule=constant \
    --set valid_every=$((long / 10 + 1)) --set save_every=$((long / 10 + 1)) --set valid_draws=4 --guard tts_cer=0.03 --guard tts_stopped=0.05
fi

listen() { # NAME OPTIONS...: on the test texts
  local name=$1; shift
  side "$name" rlspeech eval --task tts --data "$sets/test/test.jsonl" --recogniser tts_judge:listen --set workers=0 --out "$out/$name" "${eval_few[@]}" "$@"
}
evals=()
for seed in $seeds; do # a draw of the start and of the arms of a seed each; recordings and their copies are the same for all
  models=(--model "base=$model"); name=eval-$seed; more=(--set anchors=false)
  for arm in $(all_of "$seed"); do models+=(--model "$arm-$seed=$out/$arm-$seed"); done
  [ "$seed" != "${seeds%% *}" ] || { name=eval; more=(); }
  listen "$name" "${models[@]}" --baseline base --best-of 8 --judge "$posterior" --seed "$seed" "${more[@]}"
  listen "eval-warm-$seed" --model "base-warm=$model" --set sampling.temperature=1 --seed "$seed" --set anchors=false
  evals+=("$out/$name" "$out/eval-warm-$seed")
  for arm in $best; do
    listen "eval-best-$arm-$seed" --model "$arm-$seed=$out/$arm-$seed" --best-of 8 --judge "$posterior" --seed "$seed" --set anchors=false
    evals+=("$out/eval-best-$arm-$seed")
  done
done
finish
if [ "$long" != 0 ]; then listen eval-long --model "long-0=$out/long-0" --set anchors=false; finish; evals+=("$out/eval-long"); fi
against=(); for name in base base-best8 $arms; do against+=(--baseline "$name"); done
shown=(); for m in wer cer speaker_similarity dnsmos_ovrl tts_duration_drift tts_pitch_std tts_stopped; do shown+=(--metric "$m"); done
python "$here/seeds.py" "${evals[@]}" --data "$sets/test/test.jsonl" "${shown[@]}" "${against[@]}" | tee "$out/table.md"
echo "the report is $out/eval/report.html"
