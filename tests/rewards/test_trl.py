"""TRL's reward functions here, and ours there: the same numbers, by the convention that its trainer has."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reward_signals import NOTHING, sample, scored

from rlspeech.rewards.base import resolve
from rlspeech.rewards.scorer import Scorer
from rlspeech.rewards.trl import as_trl_reward, words_of
from rlspeech.rewards.user import UserReward
from rlspeech.types import Sample, UserError

SAID = ["one two", "one two three", "", "uno dos"]
TEXTS = ["one two", "one two", "one", "one two"]


def samples(**columns: list[Any]) -> list[Sample]:
    rows = [{k: v[i] for k, v in columns.items()} for i in range(len(SAID))]
    return [sample(NOTHING, f"u{i}", text=TEXTS[i], hypothesis=SAID[i], **row) for i, row in enumerate(rows)]


def scores(name: str, given: list[Sample]) -> list[float | None]:
    return [s.value for s in scored(given, name)[name]]


def test_a_function_of_trls_is_a_reward() -> None:
    assert resolve("reward_plugins:longer").entry.needs == {"hypothesis"}
    assert scores("reward_plugins:longer", samples()) == [7.0, 13.0, 0.0, 7.0]
    assert scores("reward_plugins:slow", samples()) == [1.0] * 4
    assert scores("reward_plugins:messages[conversational=true]", samples()) == [7.0, 13.0, 0.0, 7.0]
    topic, prompt = ["digits", "x", "x", "other"], ["say digits", None, None, None]
    assert scores("reward_plugins:matches", samples(topic=topic, prompt=prompt)) == [1.0, 0.0, 0.0, None]


def test_a_row_without_a_transcript_is_not_asked_about_and_a_column_that_is_not_there_is_said() -> None:
    mixed = samples()
    mixed[1].hypothesis = None
    found = scored(mixed, "reward_plugins:longer")["reward_plugins:longer"]
    assert [s.value for s in found] == [7.0, None, 0.0, 7.0] and found[1].error == "no hypothesis"
    with Scorer(["reward_plugins:misses"], workers=0) as scorer:
        scorer.dry_run()
        (first, *_) = scorer.score(samples())["reward_plugins:misses"]
    assert first.value is None and "solution" in str(first.error)
    with pytest.raises(UserError, match="messages"):
        UserReward("reward_plugins:loudness", conversational=True)


@pytest.mark.slow  # imports TRL
def test_one_that_trl_ships() -> None:
    pytest.importorskip("trl")
    name = "trl.rewards:think_format_reward[conversational=true]"
    given = samples()
    given[0].hypothesis = "<think>\nhm\n</think>\nyes"
    assert scores(name, given) == [1.0, 0.0, 0.0, 0.0]


def asked(reward: Any, completions: list[Any], **columns: Any) -> Any:
    """Call as ``trl.GRPOTrainer._calculate_rewards`` does."""
    n, logs = len(completions), dict.fromkeys(("log_extra", "log_metric"), lambda *_: None)
    given = {"prompts": ["say it"] * n, "completion_ids": [[1]] * n, **columns}
    return reward(completions=completions, **given, trainer_state=object(), **logs)


@pytest.mark.parametrize("name", ["asr_accuracy", "asr_accuracy[normaliser=basic-1]", "asr_wer", "asr_hallucination"])
def test_the_same_numbers_as_here(name: str) -> None:
    reward = as_trl_reward(name)
    expected = scores(name, samples())
    sign = -1.0 if name == "asr_wer" else 1.0  # TRL makes every reward larger
    assert reward.__name__ == name
    assert asked(reward, SAID, text=TEXTS) == [None if v is None else sign * v for v in expected]
    chats = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": s}] for s in SAID]
    assert asked(reward, chats, text=TEXTS) == asked(reward, SAID, text=TEXTS)
    assert asked(as_trl_reward(name, text="truth", raw=True), SAID, truth=TEXTS) == expected
    again = pickle.loads(pickle.dumps(reward))
    assert asked(again, SAID, text=TEXTS) == asked(reward, SAID, text=TEXTS)


def test_columns_reach_the_reward_and_nulls_come_back() -> None:
    texts, keywords = ["turn on", "turn on"], [["on"], []]
    found = asked(as_trl_reward("asr_keywords"), ["turn on", "turn off"], text=texts, keywords=keywords)
    assert found == [1.0, None], "no keywords, nothing to judge"
    assert asked(as_trl_reward("asr_accuracy"), ["a", "b"], text=["a", None]) == [1.0, None]
    assert asked(as_trl_reward("reward_plugins:messages[conversational=true]"), ["abc"], text=["x"]) == [3.0]
    told: list[tuple[str, float]] = []
    as_trl_reward("asr_accuracy")(completions=["a", "b"], text=["a", None], log_metric=lambda *x: told.append(x))
    assert told == [("asr_accuracy/unscorable", 0.5)]


def test_what_cannot_work_is_refused() -> None:
    for name, why in (("dnsmos_fast", "sound"), ("tts_loop", "tokens"), ("asr_acuracy", "asr_acuracy")):
        with pytest.raises(UserError, match=why):
            as_trl_reward(name)
    with pytest.raises(UserError, match="column 'text'") as error:
        asked(as_trl_reward("asr_accuracy"), ["a"], words=["a"], other=3)
    assert error.value.why == "the dataset has words"


def test_rewards_of_sound_with_a_decoder_and_completions_of_every_shape() -> None:
    clean = (0.1 * np.sin(np.arange(16000) * 0.05)).astype(np.float32)
    noise = 0.01 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)

    def decode(completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[np.ndarray]:
        return [clean + int(c) * noise for c in completions]

    good, bad, none = asked(as_trl_reward("si_sdr", decode=decode), ["1", "9", "9"], target=[clean, clean, None])
    assert good > bad + 15 and none is None
    loud, quiet = asked(as_trl_reward("reward_plugins:loudness", decode=decode), ["9", "0"], x=[1, 2])
    assert loud > quiet
    parts = [{"type": "text", "text": "a "}, {"type": "image"}, {"type": "text", "text": "b"}]
    chats: list[Any] = [[{"role": "assistant", "content": content}] for content in ("x", parts)]
    shapes = ["x", *chats, [], [{"role": "assistant"}], None]
    assert [words_of(s) for s in shapes] == ["x", "x", "a b", "", "", ""]


@pytest.mark.slow  # imports TRL, takes a step
def test_a_step_of_trls_own_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rlspeech.models.codec.lm import STOP, make_text_tokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = make_text_tokenizer(["one two three four"] * 4, 300)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    stop = tokenizer.convert_tokens_to_ids(STOP)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), eos_token_id=stop, **sizes))
    rows = [{"prompt": f"say {word}", "text": word, "keywords": [word]} for word in ("one", "two")]
    step: Any = {"per_device_train_batch_size": 4, "num_generations": 2, "max_steps": 1, "max_completion_length": 6}
    quiet: Any = {"report_to": [], "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    settings = trl.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **step, **quiet)
    rewards = [as_trl_reward(f"asr_{name}") for name in ("accuracy", "wer", "keywords")]
    data: Any = {"train_dataset": datasets.Dataset.from_list(rows), "processing_class": tokenizer}
    trainer = trl.GRPOTrainer(model, reward_funcs=rewards, args=settings, **data)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {"rewards/asr_accuracy/mean", "rewards/asr_wer/mean", "rewards/asr_keywords/mean"} <= set(logged)
    assert -1.0 <= logged["rewards/asr_accuracy/mean"] <= 1.0 and logged["rewards/asr_wer/mean"] <= 0.0
    assert logged["asr_accuracy/unscorable"] == 0.0
