"""Every built-in reward: its name, what it needs, where it runs. Plain data, so that listing them imports nothing heavy.

A *family* is one computation with one or more columns: asking for three columns of DNSMOS runs its network once. Adding a reward is
one ``Entry`` here (or ``rlspeech.rewards.base.register`` from outside) and one class with ``compute`` (see ``base.Family``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
    """A family of rewards that share one computation."""

    family: str  # its name
    factory: str  # ``package.module:Class``, called with the options (and ``device`` where ``where`` is "device")
    columns: dict[str, Column]  # reward name -> column; the first is the main one
    # subset of {"target", "text", "hypothesis", "tokens"}; with one of the last two the waveform is not looked at
    needs: frozenset[str] = frozenset()
    # "cpu" runs in worker processes, "device" in the main process, batched; "main" too, for what takes less time than sending it; or "http"
    where: str = "device"
    # modules that must be installed, with the word that installs them
    requires: dict[str, str] = field(default_factory=dict)
    # what it computes at, in Hz; of several the highest that the file has, else the lowest; None: the file's own
    sample_rate: int | tuple[int, ...] | None = 16000
    min_s: float = 0.1  # shorter clips are unscorable
    # "null" makes silent clips unscorable before the computation, "scale-free" those without any level; "score" hands them over, "empty"
    # also those of no samples
    silence: str = "null"
    min_rate_hz: int = 0  # files of a lower rate are unscorable
    probe: str = ""  # ``package.module:function`` that answers "" or why the reward cannot be used here


TARGET, TEXT, TOKENS, HYPOTHESIS = (frozenset({n}) for n in ("target", "text", "tokens", "hypothesis"))
ONNX = {"speechmos": "speechmos", "onnx": "onnx"}
FUZZ, DISTILL = {"rapidfuzz": "jiwer"}, {"distillmos": "--no-deps distillmos"}  # it would bring torchaudio
PESQ = {"pesq": "'rlspeech[pesq]' (needs a C compiler)"}
TORCHAUDIO = {"torchaudio": "'rlspeech[torchaudio]' (beside a GPU build of torch)"}
ANY: dict[str, Any] = {"sample_rate": None, "min_s": 0.0, "silence": "score"}  # the waveform is not what is judged
OWN: dict[str, Any] = {"sample_rate": None, "silence": "scale-free"}  # at the files' own rate, at any level
SPOKEN: dict[str, Any] = {"min_s": 0.0, "silence": "empty"}
_P = "rlspeech.rewards."
MOS, SHARE, SIGNED, POSITIVE = (1.0, 5.0), (0.0, 1.0), (-1.0, 1.0), (0.0, INF)
_LOW: dict[str, Any] = {"higher_is_better": False, "bounds": POSITIVE}  # an error

NARROW: dict[str, Any] = {"sample_rate": (8000, 16000), "silence": "scale-free", "min_s": 0.3}
WIDE: dict[str, Any] = {"silence": "scale-free", "min_s": 0.3, "min_rate_hz": 16000}


def _dnsmos(prefix: str, what: str) -> dict[str, Column]:
    words = {"ovrl": "overall quality", "sig": "speech quality", "bak": "background quality"}
    return {f"{prefix}_{c}": Column(f"{what}: {word}", bounds=MOS) for c, word in words.items()}


_ASR: dict[str, Column] = {
    "asr_accuracy": Column("1 - word (or character) error rate of the hypothesis, bounded below", bounds=SIGNED),
    "asr_hallucination": Column("-1 where a rule finds one, else 0; [graded=true]: by its length", bounds=(-1.0, 0.0)),
    "asr_keywords": Column("mean of keyword precision and recall; null without keywords", bounds=SHARE, optional=True),
    "asr_exact": Column("1 where the texts are the same after normalisation, else 0", bounds=SHARE),
    "asr_edits": Column("minus the edit distance, in units", bounds=(-INF, 0.0)),
    "asr_wer": Column("errors per reference unit; null where nothing is said", False, POSITIVE, True),
    "asr_cer": Column("errors per reference character", False, POSITIVE, True),
    "asr_insertions": Column("insertions per reference unit", False, POSITIVE, True),
    "asr_deletions": Column("deletions per reference unit", False, SHARE, True),
    "asr_substitutions": Column("substitutions per reference unit", False, SHARE, True),
    "asr_keyword_f1": Column("F1 of the keywords", bounds=SHARE, optional=True),
    "asr_hallucinated": Column("1 where a rule calls the hypothesis a hallucination, else 0", False, SHARE),
}
_TTS: dict[str, Column] = {
    "tts_accuracy": Column("of a recogniser's CER on synthesised speech (form: linear, tanh, exp)", bounds=(-INF, 1.0)),
    "tts_cer": Column("its character error rate; of an empty transcript 1", False, POSITIVE),
    "tts_wer": Column("its word error rate", False, POSITIVE),
    "tts_posterior": Column("exp(-NLL / 3) of the text, by an audio language model given the speech", bounds=SHARE),
    "tts_nll": Column("that NLL, in nats a piece of the text", False, POSITIVE),
}
_TOKEN_RULES: dict[str, Column] = {
    "tts_duration": Column("minus the relative distance of its length from its group's median", bounds=(-INF, 0.0)),
    "tts_token_diversity": Column("mean edit distance to the group's others, 0 for loops", bounds=SHARE, optional=True),
    "tts_stopped": Column("1 where the stop token came, else 0", bounds=SHARE),
    "tts_loop": Column("1 where the codec tokens run in a loop, else 0", False, SHARE),
}
_RATIO = "length of the speech over the recording's, or over what the text should take; 1 is right"
_SHAPE: dict[str, Column] = {
    "tts_pitch_std": Column("standard deviation of log F0 over voiced frames", bounds=POSITIVE, optional=True),
    "tts_duration_ratio": Column(_RATIO, bounds=POSITIVE, optional=True),
    "tts_duration_drift": Column("size of that logarithm: how far too long or too short", False, POSITIVE, True),
}
_TOKEN_TEXT: dict[str, Column] = {
    "token_accuracy": Column("as tts_accuracy, by the token reward: no waveform is made", bounds=(-INF, 1.0)),
    "token_cer": Column("its character error rate; of no tokens 1", False, POSITIVE),
    "token_posterior": Column("exp(-NLL / 3) of the text given the codec tokens", bounds=SHARE),
    "token_nll": Column("that NLL, in nats a piece of the text", False, POSITIVE),
    "token_sex": Column("probability of the row's sex", bounds=SHARE, optional=True),
    "token_speaker": Column("probability of the row's speaker_id", bounds=SHARE, optional=True),
    "token_quality": Column("expected level of quality, 1 is the worst", bounds=(1.0, INF), optional=True),
}
_BERT: dict[str, Column] = {
    "speech_bert_score": Column("SpeechBERTScore (precision) against the reference", bounds=SIGNED),
    "speech_bert_recall": Column("its recall", bounds=SIGNED),
    "speech_bert_f1": Column("its F1", bounds=SIGNED),
}
_SQUIM: dict[str, Column] = {
    "squim_pesq": Column("PESQ as predicted by torchaudio's SQUIM", bounds=(1.0, 4.65)),
    "squim_stoi": Column("STOI as predicted by SQUIM", bounds=SHARE),
    "squim_si_sdr": Column("SI-SDR as predicted by SQUIM, in dB"),
}
_STOI = {
    n: Column(f"intelligibility ({full})", bounds=SIGNED) for n, full in (("stoi", "STOI"), ("estoi", "extended STOI"))
}
_WER = {f"{word[0]}er": Column(f"{word} error rate of a recogniser", **_LOW) for word in ("word", "character")}
_SDR = {"si_sdr": Column("scale-invariant signal-to-distortion ratio in dB")}
_LSD = {"lsd": Column("log-spectral distance in dB", **_LOW)}
_MRSTFT = {"mrstft": Column("multi-resolution STFT distance: spectral convergence plus log-magnitude", **_LOW)}
_P808 = {"dnsmos_p808": Column("DNSMOS P.808, official windows", bounds=MOS)}
_SIMILARITY = {"speaker_similarity": Column("cosine of speaker embeddings with the reference", bounds=SIGNED)}
_DISTILL = {"distillmos": Column("DistillMOS: overall quality by another net than DNSMOS's", bounds=MOS)}
_LLM = {"llm": Column("rating read out of an audio language model's words", bounds=MOS)}
_PESQ_WB = {"pesq_wb": Column("PESQ, wide band (ITU-T P.862.2)", bounds=(1.0, 4.65))}
_PESQ_NB = {"pesq_nb": Column("PESQ, narrow band (ITU-T P.862)", bounds=(1.0, 4.65))}
_FAST = _dnsmos("dnsmos_fast", "DNSMOS P.835 on the clip as it is, at -25 dBFS; for training")


BUILTIN: tuple[Entry, ...] = (
    Entry("asr", _P + "rules:TextRules", _ASR, HYPOTHESIS | TEXT, "main", FUZZ, **ANY),
    Entry("tts", _P + "speech_rules:SpokenText", _TTS, TEXT, requires=FUZZ, **SPOKEN),
    Entry("token_rules", _P + "speech_rules:TokenRules", _TOKEN_RULES, TOKENS, "main", FUZZ, **ANY),
    Entry("speech_shape", _P + "speech_rules:SpeechShape", _SHAPE, frozenset(), "cpu", **SPOKEN),
    Entry("token_text", _P + "soft:TokenText", _TOKEN_TEXT, TOKENS | TEXT, requires=FUZZ, **ANY),
    Entry("dnsmos", _P + "dnsmos:Dnsmos", _dnsmos("dnsmos", "DNSMOS P.835, official windows"), requires=ONNX),
    Entry("pdnsmos", _P + "dnsmos:PersonalisedDnsmos", _dnsmos("pdnsmos", "personalised DNSMOS P.835"), requires=ONNX),
    Entry("dnsmos_p808", _P + "dnsmos:P808", _P808, requires=ONNX),
    Entry("dnsmos_fast", _P + "dnsmos:FastDnsmos", _FAST, requires=ONNX, min_s=0.3),
    Entry("distillmos", _P + "distillmos:DistillMos", _DISTILL, requires=DISTILL, min_s=0.3),
    Entry("pesq_wb", _P + "intrusive:PesqWb", _PESQ_WB, TARGET, "cpu", PESQ, **WIDE),
    Entry("pesq_nb", _P + "intrusive:PesqNb", _PESQ_NB, TARGET, "cpu", PESQ, **NARROW),
    Entry("stoi", _P + "intrusive:Stoi", _STOI, TARGET, "cpu", **OWN, min_s=0.4),
    Entry("si_sdr", _P + "intrusive:SiSdr", _SDR, TARGET, "cpu", **OWN),
    Entry("lsd", _P + "intrusive:Lsd", _LSD, TARGET, "cpu", **OWN),
    Entry("mrstft", _P + "intrusive:MultiResolutionStft", _MRSTFT, TARGET, "cpu", **OWN),
    Entry("speaker_similarity", _P + "encoders:SpeakerSimilarity", _SIMILARITY, TARGET, min_s=0.3),
    Entry("speech_bert_score", _P + "encoders:SpeechBertScore", _BERT, TARGET),
    Entry("wer", _P + "rates:ErrorRate", _WER, TEXT, requires={"jiwer": "jiwer"}, silence="score"),
    Entry("squim", _P + "squim:Squim", _SQUIM, requires=TORCHAUDIO, min_s=0.3, probe=_P + "squim:torchaudio_problem"),
    Entry("llm", _P + "llm.judge:LlmJudge", _LLM, min_s=0.3),
)

# columns with a gradient to the waveform, which DiffRO can follow: the class has ``predict``, or ``soft`` where it compares
_SOFT = "dnsmos pdnsmos dnsmos_p808 dnsmos_fast distillmos stoi si_sdr lsd mrstft speaker_similarity speech_bert_score squim"
SOFT = tuple(column for entry in BUILTIN if entry.family in _SOFT.split() for column in entry.columns)

# in place of the entry of that name where ``recogniser`` is given: it needs a hypothesis, or a waveform to get one from
RECOGNISED = Entry("asr", _P + "speech_rules:RecognisedText", _ASR, TEXT | {"transcript"}, requires=FUZZ, **SPOKEN)
RECOGNISERS = ("wer", "tts", RECOGNISED.family)  # families that take one

ALIASES: dict[str, str] = {
    "dnsmos": "dnsmos_ovrl",
    "pdnsmos": "pdnsmos_ovrl",
    "dnsmos_fast": "dnsmos_fast_ovrl",
    "p808": "dnsmos_p808",
    "pesq": "pesq_wb",
    "spk_sim": "speaker_similarity",
    "speech_bert_precision": "speech_bert_score",
}
