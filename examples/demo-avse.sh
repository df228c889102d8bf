#!/usr/bin/env bash
# Audio-visual enhancement from raw audio to a verdict, on the embedded corpus and checkpoint: what `make demo-avse` runs.
#   OUT=FOLDER  where everything goes (default runs/demo-avse); a rerun does not repeat finished steps
#   TINY=1      a few steps of everything, for tests
# The faces are drawn (corpora/lips.py), the voices synthetic: this shows that the chain works, not how well it reads real faces.
set -euo pipefail
out=${OUT:-runs/demo-avse}
few=(); [ -z "${TINY:-}" ] || few=(--set steps=2 --set valid_every=2 --set save_every=2 --set valid_items=2 --set batch=2 --set mixing.clip_s=1)
rl_few=(); [ -z "${TINY:-}" ] || rl_few=(--set steps=2 --set valid_every=2 --set save_every=2 --set valid_items=2 --set prompts_per_step=2 --set group=2 --set clip_s=1)
eval_few=(); [ -z "${TINY:-}" ] || eval_few=(--set limit=2 --metric si_sdr --metric llm)
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
say() { printf '\n== %s\n' "$1" >&2; }
SECONDS=0

say "1/6 prepare: the embedded voices get drawn mouths and competing talkers"
rlspeech prepare demo --mouths --out "$out/data"

say "2/6 pretrain: the embedded checkpoint, trained on real speech with drawn mouths, is adapted to this corpus with SI-SNR"
rlspeech pretrain --preset avse-demo-pretrain --data "$out/data/mix.json" --valid "$out/data/valid.jsonl" --out "$out/pretrained" "${few[@]}"

say "3/6 reward: the audio LLM describes the unprocessed mixtures, and its words become stars"
rlspeech reward "$out/data/valid.jsonl" --reward llm --reward si_sdr --system input --out "$out/scores"

say "4/6 the control: the same steps with SI-SNR alone, no RL"
rlspeech rl --preset avse-demo-rl --set policy_weight=0 --model "$out/pretrained" --data "$out/data/mix.json" --valid "$out/data/valid.jsonl" \
  --out "$out/control" "${rl_few[@]}"

say "5/6 rl: PPO with the words of the audio LLM as the reward"
rlspeech rl --preset avse-demo-rl --model "$out/pretrained" --data "$out/data/mix.json" --valid "$out/data/valid.jsonl" --out "$out/rl" "${rl_few[@]}"

say "6/6 eval: input, pretrained (also with another clip's video), control and RL on voices, texts and noises that are in no training set"
rlspeech eval --task avse --data "$out/data/test.jsonl" --model "pretrained=$out/pretrained" --model "control=$out/control" --model "rl=$out/rl" \
  --shuffled pretrained --baseline control --out "$out/eval" "${eval_few[@]}"

say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Look at, listen to and read: $out/eval/report.html"
