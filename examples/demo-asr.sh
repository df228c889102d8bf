#!/usr/bin/env bash
# Recognition from raw audio to a verdict, on the embedded recogniser and corpus: what `make demo-asr` runs.
#   OUT=FOLDER  where everything goes (default runs/demo-asr); a rerun does not repeat finished steps
#   TINY=1      a few steps of everything, for tests
# The voices are synthetic: this shows that the chain works, and what rule rewards do to invented words.
set -euo pipefail
out=${OUT:-runs/demo-asr}
rl_few=(--set steps=30 --set valid_every=15 --set save_every=15); [ -z "${TINY:-}" ] || rl_few=(--set steps=2 --set valid_every=2 --set save_every=2 --set valid_items=2 --set prompts_per_step=2 --set group=2)
eval_few=(); [ -z "${TINY:-}" ] || eval_few=(--set limit=4)
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
say() { printf '\n== %s\n' "$1" >&2; }
SECONDS=0

say "1/5 prepare: spoken digits and commands, in noise, joined to long recordings, and sound without speech"
rlspeech prepare demo --commands --out "$out/data"

say "2/5 transcribe: the embedded recogniser on three of the test files, and on music"
rlspeech transcribe "$out/data/audio/test/noisy/test_noisy_000.flac" "$out/data/audio/test/noisy/test_noisy_001.flac" \
  "$out/data/audio/test/test_long_000.flac" "$out"/data/audio/test/tempting/audio/music_0000.flac

say "3/5 the control: the same steps on the same data with cross-entropy, no RL"
rlspeech rl --preset asr-demo-rl --set policy_weight=0 --set supervised_weight=1 --data "$out/data/train.jsonl" --valid "$out/data/valid.jsonl" \
  --out "$out/sft" "${rl_few[@]}"

say "4/5 rl: GRPO on the rules: correct words, no invented words, keywords"
rlspeech rl --preset asr-demo-rl --data "$out/data/train.jsonl" --valid "$out/data/valid.jsonl" --out "$out/grpo" "${rl_few[@]}"

say "5/5 eval: before, control and GRPO on a voice, texts and noises that are in no training set"
rlspeech eval --task asr --data "$out/data/test.jsonl" --model base=embedded --model "sft=$out/sft" --model "grpo=$out/grpo" --baseline base \
  --out "$out/eval" "${eval_few[@]}"

say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Look at, listen to and read: $out/eval/report.html"
