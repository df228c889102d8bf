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
    """One number of a family: direction, range and a line for people."""

    help: str
    higher_is_better: bool = True
    bounds: tuple[float, float] = (-INF, INF)


@dataclass(frozen=True, slots=True)
class Entry:
    """A family of rewards that share one computation.

    Args:
        family: its name.
        factory: ``package.module:Class``, called with the options (and ``device`` where ``where`` is "device").
        columns: reward name -> column; the first is the main one.
        needs: subset of {"target", "text"}.
        where: "cpu" runs in worker processes, "device" in the main process, batched.
        requires: modules that must be installed, with the word that installs them.
        sample_rate: what it computes at, in Hz; None takes any.
        min_s: shorter clips are unscorable.
        silence: "null" makes silent clips unscorable before the computation; "score" hands them over.
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
_ONNX = {"speechmos": "speechmos", "onnx": "onnx"}
_P = "rlspeech.rewards."


def _dnsmos(prefix: str, what: str) -> dict[str, Column]:
    return {f"{prefix}_{c}": Column(f"{what}: {word}", bounds=(1.0, 5.0))
            for c, word in (("ovrl", "overall quality"), ("sig", "speech quality"), ("bak", "background quality"))}


BUILTIN: tuple[Entry, ...] = (
    Entry("dnsmos", _P + "dnsmos:Dnsmos", _dnsmos("dnsmos", "DNSMOS P.835, official windows"), requires=_ONNX),
    Entry("pdnsmos", _P + "dnsmos:PersonalisedDnsmos", _dnsmos("pdnsmos", "personalised DNSMOS P.835"), requires=_ONNX),
    Entry("dnsmos_p808", _P + "dnsmos:P808", {"dnsmos_p808": Column("DNSMOS P.808, official windows", bounds=(1.0, 5.0))}, requires=_ONNX),
    Entry("dnsmos_fast", _P + "dnsmos:FastDnsmos", _dnsmos("dnsmos_fast", "DNSMOS P.835 on the clip as it is, at -25 dBFS; for training"),
          requires=_ONNX, min_s=0.3),
    Entry("pesq_wb", _P + "intrusive:PesqWb", {"pesq_wb": Column("PESQ, wide band (ITU-T P.862.2)", bounds=(1.0, 4.65))},
          TARGET, "cpu", {"pesq": "'rlspeech[pesq]' (needs a C compiler)"}, min_s=0.3),
    Entry("pesq_nb", _P + "intrusive:PesqNb", {"pesq_nb": Column("PESQ, narrow band (ITU-T P.862)", bounds=(1.0, 4.65))},
          TARGET, "cpu", {"pesq": "'rlspeech[pesq]' (needs a C compiler)"}, min_s=0.3),
    Entry("stoi", _P + "intrusive:Stoi",
          {"stoi": Column("intelligibility (STOI)", bounds=(-1.0, 1.0)),
           "estoi": Column("intelligibility (extended STOI)", bounds=(-1.0, 1.0))}, TARGET, "cpu", min_s=0.4),
    Entry("si_sdr", _P + "intrusive:SiSdr", {"si_sdr": Column("scale-invariant signal-to-distortion ratio in dB")}, TARGET, "cpu"),
    Entry("lsd", _P + "intrusive:Lsd", {"lsd": Column("log-spectral distance in dB", False, (0.0, INF))}, TARGET, "cpu"),
    Entry("speaker_similarity", _P + "speaker:SpeakerSimilarity",
          {"speaker_similarity": Column("cosine of speaker embeddings with the reference", bounds=(-1.0, 1.0))}, TARGET, min_s=0.3),
    Entry("speech_bert_score", _P + "semantic:SpeechBertScore",
          {"speech_bert_score": Column("SpeechBERTScore (precision) against the reference", bounds=(-1.0, 1.0)),
           "speech_bert_recall": Column("its recall", bounds=(-1.0, 1.0)), "speech_bert_f1": Column("its F1", bounds=(-1.0, 1.0))}, TARGET),
    Entry("wer", _P + "text:ErrorRate", {"wer": Column("word error rate of a recogniser", False, (0.0, INF)),
                                         "cer": Column("character error rate of a recogniser", False, (0.0, INF))},
          TEXT, requires={"jiwer": "jiwer"}, silence="score"),
    Entry("squim", _P + "squim:Squim", {"squim_pesq": Column("PESQ as predicted by torchaudio's SQUIM", bounds=(1.0, 4.65)),
                                        "squim_stoi": Column("STOI as predicted by SQUIM", bounds=(0.0, 1.0)),
                                        "squim_si_sdr": Column("SI-SDR as predicted by SQUIM, in dB")},
          requires={"torchaudio": "'rlspeech[torchaudio]'"}, min_s=0.3, probe=_P + "_torchaudio:why_not"),
    Entry("llm", _P + "judge:LlmJudge", {"llm": Column("rating read out of an audio language model's words", bounds=(1.0, 5.0))},
          min_s=0.3),
)

ALIASES: dict[str, str] = {
    "dnsmos": "dnsmos_ovrl", "pdnsmos": "pdnsmos_ovrl", "dnsmos_fast": "dnsmos_fast_ovrl", "p808": "dnsmos_p808", "pesq": "pesq_wb",
    "spk_sim": "speaker_similarity", "speech_bert_precision": "speech_bert_score",
}
