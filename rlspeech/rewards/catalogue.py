"""Every built-in reward: its name, what it needs, where it runs. Plain data, so that listing them imports nothing heavy.

A *family* is one computation with one or more columns: asking for three columns of DNSMOS runs its network once. Adding a reward is
one ``Entry`` here (or ``rlspeech.rewards.base.register`` from outside) and one class with ``compute`` (see ``base.Family``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ALIASES", "BUILTIN", "Column", "Entry"]

INF = float("inf")


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a family: direction, range and a line for people.

    ``optional``: null may mean that there is nothing to judge (no keywords, no reference words) and is then no failure.
    """

    help: str
    higher_is_better: bool = True
    bounds: tuple[float, float] = (-INF, INF)
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A family of rewards that share one computation.

    Args:
        family: its name.
        factory: ``package.module:Class``, called with the options (and ``device`` where ``where`` is "device").
        columns: reward name -> column; the first is the main one.
        needs: subset of {"target", "text", "hypothesis", "tokens"}; with one of the last two the waveform is not looked at.
        where: "cpu" runs in worker processes, "device" in the main process, batched; "main" too, for what is faster than sending it.
        requires: modules that must be installed, with the word that installs them.
        sample_rate: what it computes at, in Hz; None takes any.
        min_s: shorter clips are unscorable.
        silence: "null" makes silent clips unscorable before the computation; "score" hands them over, "empty" also those of no samples.
        probe: ``package.module:function`` that answers "" or why the reward cannot be used here.
    """

    family: str
    factory: str
    columns: dict[str, Column]
    needs: frozenset[str] = frozenset()
    where: str = "device"
    requires: dict[str, str] = field(default_factory=dict)
    sample_rate: int | None = 16000
    min_s: float = 0.1
    silence: str = "null"
    probe: str = ""


TARGET, TEXT = frozenset({"target"}), frozenset({"text"})
TOKENS = frozenset({"tokens"})
HYPOTHESIS = frozenset({"hypothesis", "text"})
_ONNX = {"speechmos": "speechmos", "onnx": "onnx"}
_P = "rlspeech.rewards."


def _dnsmos(prefix: str, what: str) -> dict[str, Column]:
    return {
        f"{prefix}_{c}": Column(f"{what}: {word}", bounds=(1.0, 5.0))
        for c, word in (("ovrl", "overall quality"), ("sig", "speech quality"), ("bak", "background quality"))
    }


_ASR: dict[str, Column] = {
    "asr_accuracy": Column("1 - word (or character) error rate of the hypothesis, bounded below", bounds=(-1.0, 1.0)),
    "asr_hallucination": Column("-1 where a rule calls the hypothesis a hallucination, else 0", bounds=(-1.0, 0.0)),
    "asr_keywords": Column(
        "mean of keyword precision and recall; null without keywords", bounds=(0.0, 1.0), optional=True
    ),
    "asr_exact": Column("1 where the texts are the same after normalisation, else 0", bounds=(0.0, 1.0)),
    "asr_edits": Column("minus the edit distance, in units", bounds=(-INF, 0.0)),
    "asr_wer": Column("errors per reference unit; null where nothing is said", False, (0.0, INF), True),
    "asr_cer": Column("errors per reference character", False, (0.0, INF), True),
    "asr_insertions": Column("insertions per reference unit", False, (0.0, INF), True),
    "asr_deletions": Column("deletions per reference unit", False, (0.0, 1.0), True),
    "asr_substitutions": Column("substitutions per reference unit", False, (0.0, 1.0), True),
    "asr_keyword_f1": Column("F1 of the keywords", bounds=(0.0, 1.0), optional=True),
    "asr_hallucinated": Column("1 where a rule calls the hypothesis a hallucination, else 0", False, (0.0, 1.0)),
}

_TTS: dict[str, Column] = {
    "tts_accuracy": Column(
        "of a recogniser's character error rate on synthesised speech (form: linear, tanh, exp)", bounds=(-INF, 1.0)
    ),
    "tts_cer": Column("its character error rate; of an empty transcript 1", False, (0.0, INF)),
    "tts_wer": Column("its word error rate", False, (0.0, INF)),
    "tts_posterior": Column(
        "exp(-NLL / 3) of the text by an audio language model that hears the speech", bounds=(0.0, 1.0)
    ),
    "tts_nll": Column("that NLL, in nats a piece of the text", False, (0.0, INF)),
}
_TOKEN_RULES: dict[str, Column] = {
    "tts_duration": Column(
        "minus the relative distance of a rollout's length from its group's median", bounds=(-INF, 0.0)
    ),
    "tts_token_diversity": Column(
        "mean edit distance of tokens to the group's others, 0 for loops", bounds=(0.0, 1.0), optional=True
    ),
    "tts_stopped": Column("1 where the stop token came, else 0", bounds=(0.0, 1.0)),
    "tts_loop": Column("1 where the codec tokens run in a loop, else 0", False, (0.0, 1.0)),
}
_SHAPE: dict[str, Column] = {
    "tts_pitch_std": Column("standard deviation of log F0 over voiced frames", bounds=(0.0, INF), optional=True),
    "tts_duration_ratio": Column(
        "length of the speech over the recording's, or over what the text should take; 1 is right",
        bounds=(0.0, INF),
        optional=True,
    ),
    "tts_duration_drift": Column(
        "size of that ratio's logarithm: how far too long or too short", False, (0.0, INF), True
    ),
}
_TOKEN_TEXT: dict[str, Column] = {
    "token_accuracy": Column("as tts_accuracy, by the token reward: no waveform is made", bounds=(-INF, 1.0)),
    "token_cer": Column("its character error rate; of no tokens 1", False, (0.0, INF)),
    "token_posterior": Column("exp(-NLL / 3) of the text given the codec tokens", bounds=(0.0, 1.0)),
    "token_nll": Column("that NLL, in nats a piece of the text", False, (0.0, INF)),
    "token_sex": Column("probability of the row's sex", bounds=(0.0, 1.0), optional=True),
    "token_speaker": Column("probability of the row's speaker_id", bounds=(0.0, 1.0), optional=True),
    "token_quality": Column("expected level of quality, 1 is the worst", bounds=(1.0, INF), optional=True),
}


BUILTIN: tuple[Entry, ...] = (
    Entry("asr", _P + "rules:TextRules", _ASR, HYPOTHESIS, "main", {"rapidfuzz": "jiwer"}, None, 0.0, "score"),
    Entry(
        "tts", _P + "speech_rules:SpokenText", _TTS, TEXT, requires={"rapidfuzz": "jiwer"}, min_s=0.0, silence="empty"
    ),
    Entry(
        "token_rules",
        _P + "speech_rules:TokenRules",
        _TOKEN_RULES,
        TOKENS,
        "main",
        {"rapidfuzz": "jiwer"},
        None,
        0.0,
        "score",
    ),
    Entry("speech_shape", _P + "speech_rules:SpeechShape", _SHAPE, frozenset(), "cpu", min_s=0.0, silence="empty"),
    Entry(
        "token_text",
        _P + "soft:TokenText",
        _TOKEN_TEXT,
        TOKENS | TEXT,
        "device",
        {"rapidfuzz": "jiwer"},
        None,
        0.0,
        "score",
    ),
    Entry("dnsmos", _P + "dnsmos:Dnsmos", _dnsmos("dnsmos", "DNSMOS P.835, official windows"), requires=_ONNX),
    Entry("pdnsmos", _P + "dnsmos:PersonalisedDnsmos", _dnsmos("pdnsmos", "personalised DNSMOS P.835"), requires=_ONNX),
    Entry(
        "dnsmos_p808",
        _P + "dnsmos:P808",
        {"dnsmos_p808": Column("DNSMOS P.808, official windows", bounds=(1.0, 5.0))},
        requires=_ONNX,
    ),
    Entry(
        "dnsmos_fast",
        _P + "dnsmos:FastDnsmos",
        _dnsmos("dnsmos_fast", "DNSMOS P.835 on the clip as it is, at -25 dBFS; for training"),
        requires=_ONNX,
        min_s=0.3,
    ),
    Entry(
        "pesq_wb",
        _P + "intrusive:PesqWb",
        {"pesq_wb": Column("PESQ, wide band (ITU-T P.862.2)", bounds=(1.0, 4.65))},
        TARGET,
        "cpu",
        {"pesq": "'rlspeech[pesq]' (needs a C compiler)"},
        min_s=0.3,
    ),
    Entry(
        "pesq_nb",
        _P + "intrusive:PesqNb",
        {"pesq_nb": Column("PESQ, narrow band (ITU-T P.862)", bounds=(1.0, 4.65))},
        TARGET,
        "cpu",
        {"pesq": "'rlspeech[pesq]' (needs a C compiler)"},
        min_s=0.3,
    ),
    Entry(
        "stoi",
        _P + "intrusive:Stoi",
        {
            "stoi": Column("intelligibility (STOI)", bounds=(-1.0, 1.0)),
            "estoi": Column("intelligibility (extended STOI)", bounds=(-1.0, 1.0)),
        },
        TARGET,
        "cpu",
        min_s=0.4,
    ),
    Entry(
        "si_sdr",
        _P + "intrusive:SiSdr",
        {"si_sdr": Column("scale-invariant signal-to-distortion ratio in dB")},
        TARGET,
        "cpu",
    ),
    Entry(
        "lsd", _P + "intrusive:Lsd", {"lsd": Column("log-spectral distance in dB", False, (0.0, INF))}, TARGET, "cpu"
    ),
    Entry(
        "speaker_similarity",
        _P + "encoders:SpeakerSimilarity",
        {"speaker_similarity": Column("cosine of speaker embeddings with the reference", bounds=(-1.0, 1.0))},
        TARGET,
        min_s=0.3,
    ),
    Entry(
        "speech_bert_score",
        _P + "encoders:SpeechBertScore",
        {
            "speech_bert_score": Column("SpeechBERTScore (precision) against the reference", bounds=(-1.0, 1.0)),
            "speech_bert_recall": Column("its recall", bounds=(-1.0, 1.0)),
            "speech_bert_f1": Column("its F1", bounds=(-1.0, 1.0)),
        },
        TARGET,
    ),
    Entry(
        "wer",
        _P + "rates:ErrorRate",
        {
            "wer": Column("word error rate of a recogniser", False, (0.0, INF)),
            "cer": Column("character error rate of a recogniser", False, (0.0, INF)),
        },
        TEXT,
        requires={"jiwer": "jiwer"},
        silence="score",
    ),
    Entry(
        "squim",
        _P + "squim:Squim",
        {
            "squim_pesq": Column("PESQ as predicted by torchaudio's SQUIM", bounds=(1.0, 4.65)),
            "squim_stoi": Column("STOI as predicted by SQUIM", bounds=(0.0, 1.0)),
            "squim_si_sdr": Column("SI-SDR as predicted by SQUIM, in dB"),
        },
        requires={"torchaudio": "'rlspeech[torchaudio]'"},
        min_s=0.3,
        probe=_P + "squim:why_not",
    ),
    Entry(
        "llm",
        _P + "llm.judge:LlmJudge",
        {"llm": Column("rating read out of an audio language model's words", bounds=(1.0, 5.0))},
        min_s=0.3,
    ),
)

ALIASES: dict[str, str] = {
    "dnsmos": "dnsmos_ovrl",
    "pdnsmos": "pdnsmos_ovrl",
    "dnsmos_fast": "dnsmos_fast_ovrl",
    "p808": "dnsmos_p808",
    "pesq": "pesq_wb",
    "spk_sim": "speaker_similarity",
    "speech_bert_precision": "speech_bert_score",
}
