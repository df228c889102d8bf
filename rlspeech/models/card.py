"""The model card of a checkpoint: ``README.md`` with a front matter that the Hub reads, and what a person has to know before using it.

Names, paths and texts in a card come from data and settings: they are quoted for YAML and escaped for Markdown, so that none of them
can become a heading, a link or HTML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")
LANGUAGE = re.compile(r"[a-z]{2,3}")
NAME = re.compile(r"[\w.\-]{1,96}")
SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$])")
LONGEST = 300
ASIDE = frozenset({"rl", "earlier", "validation"})  # facts that have a section of their own
UNTRIED = "- It knows speech as it was in its training data; other languages, rooms and devices were not tried."
LIMITS = (
    "- The numbers above are of clips held back during training, by the scorers that trained it, from one seed: a test set "
    "of your own (`rlspeech eval`) says more.",
    "- A policy finds what its rewards do not measure. Listen before you trust a number.",
)
SETTINGS = "algo steps prompts_per_step group lr kl_beta clip_range advantage supervised_weight lora seed".split()


@dataclass(frozen=True, slots=True)
class Card:
    """What a card says of the kind of model."""

    title: str  # "flow enhancer"
    task: str  # of rlspeech
    parameters: int  # how many
    rate: int | None  # samples a second of the audio it takes or makes, in Hz; None where it takes none
    library: str  # what loads the folder
    pipeline: str  # the Hub's name for the task; "" for none
    tags: Sequence[str] = ()  # further words to be found by
    uses: Sequence[str] = ()  # commands, with THIS_FOLDER for the folder
    details: Sequence[str] = ()  # sentences about the model


def printable(value: Any) -> str:
    """A value as one line of printable text."""
    text = " ".join(str(value).encode("utf-8", "replace").decode().split())
    return "".join(c for c in text if c.isprintable()).strip()


def md(value: Any, most: int = LONGEST) -> str:
    """A value as text that Markdown shows as it is, within a line (what it would do at the start of one is not looked at)."""
    text = printable(value)
    text = text if len(text) <= most else text[: most - 1] + "\u2026"
    text = SPECIAL.sub(r"\\\1", text)
    return re.sub(r"(?i)\b(https?|ftp|mailto|www)([:.])", r"\1\\\2", text)  # an address is no link either


def write_card(folder: Path, card: Card, facts: Mapping[str, Any]) -> None:
    """Write ``README.md`` into a checkpoint's folder."""
    (folder / "README.md").write_text(model_card(card, facts), encoding="utf-8", newline="\n")


def model_card(card: Card, facts: Mapping[str, Any]) -> str:
    """The card of a model with its facts, as in ``config.json`` or ``rlspeech.json``; what is missing or odd is left out."""
    rl = _mapping(facts.get("rl"))
    rate = f", {card.rate} Hz" if card.rate else ""
    title = f"# {card.title[:1].upper()}{card.title[1:]}, {card.parameters / 1e6:.2f} M parameters{rate}"
    parts = [_data(facts, rl), _rewards(rl), _guards(rl), _results(rl), _check(facts, rl), _use(card), _limits(rl)]
    parts.append(_section("Versions", _facts(_mapping(rl.get("versions")))))
    body = [title, "", _what(card, facts, rl), *(line for part in parts for line in part), ""]
    return front_matter(card, facts) + "\n".join(body)


# --------------------------------------------------------------------------------------------------------- front matter


def front_matter(card: Card, facts: Mapping[str, Any]) -> str:
    """The YAML block at the head, with the fields that the Hub knows."""
    from huggingface_hub import EvalResult, ModelCardData

    rl = _mapping(facts.get("rl"))
    start = str(rl.get("from") or "")
    algo = [str(rl["algo"])] if NAME.fullmatch(str(rl.get("algo", "")).replace("+", "-")) else []
    tuned = ["reinforcement-learning", *algo] if rl and rl.get("policy_weight", 1) else []
    values = {k: m for k, m in _metrics(rl).items() if k != "reward" and NAME.fullmatch(k)}
    where = printable(_short(rl.get("valid") or rl.get("data") or "embedded corpus"))[:120]
    kind = re.sub(r"[^\w.\-]+", "-", Path(where).stem).strip("-")[:60] or "speech"
    results = [
        EvalResult(
            task_type=card.pipeline,
            dataset_type=kind,
            dataset_name=f"{where} (held-out clips)",
            metric_type=name,
            metric_name=f"{name}, {'higher' if m['up'] else 'lower'} is better",
            metric_value=round(float(m["now"]["mean"]), 6),
        )
        for name, m in (values.items() if card.pipeline else ())
    ]
    more: dict[str, Any] = {"model_name": card.title, "eval_results": results} if results else {}
    if HUB_ID.fullmatch(start) and not Path(start).exists():
        more |= {"base_model": start, "base_model_relation": "finetune"}
    matter = ModelCardData(
        language=[x for x in _list(facts.get("languages")) if isinstance(x, str) and LANGUAGE.fullmatch(x)] or None,
        library_name=card.library,
        pipeline_tag=card.pipeline or None,
        tags=list(dict.fromkeys(["rlspeech", *card.tags, *tuned])),
        metrics=list(values) or None,
        **more,
    )
    return f"---\n{matter.to_yaml().strip()}\n---\n\n"


# ------------------------------------------------------------------------------------------------------------- sections


def _what(card: Card, facts: Mapping[str, Any], rl: Mapping[str, Any]) -> str:
    text = " ".join([f"A {card.title} of rlspeech (task `{card.task}`).", *card.details])
    if rl:
        text += f" Tuned by reinforcement learning: {_tuning(rl)}."
        chain = [_tuning(_mapping(e)) for e in _list(facts.get("earlier"))]
        text += f" Before that: {'; then '.join(chain)}." if chain else ""
    elif facts.get("stage") == "pretrain":
        text += f" Trained with supervision for {_steps(facts.get('steps'))}."
    return text


def _tuning(rl: Mapping[str, Any]) -> str:
    return f"{md(rl.get('algo'))}, {_steps(rl.get('step'))}, starting from {md(_short(rl.get('from')))}"


def _steps(count: Any) -> str:
    return "1 step" if count == 1 else f"{md(count)} steps"


def _short(path: Any) -> str:
    """The end of an absolute path; what lies before it does not belong on a card."""
    text = str(path)
    return "/".join(Path(text).parts[-2:]) if Path(text).is_absolute() else text


def _data(facts: Mapping[str, Any], rl: Mapping[str, Any]) -> list[str]:
    lines = _facts({k: _short(v) if k == "data" else v for k, v in facts.items() if k not in ASIDE})
    if rl:
        origin = {
            "data of the reinforcement": _short(rl.get("data") or "the embedded corpus"),
            "prompts to draw from": rl.get("rows"),
            "held out": _short(rl.get("valid") or "held back from the data"),
            "settings of the reinforcement": {k: rl[k] for k in SETTINGS if rl.get(k) is not None},
        }
        lines += _facts(origin)
    return ["", "## Data and training", "", *lines]


def _rewards(rl: Mapping[str, Any]) -> list[str]:
    specs = map(_mapping, _list(rl.get("reward_specs")))
    rows = [[s.get("name"), s.get("weight"), s.get("scale"), s.get("help", "")] for s in specs]
    note = ["", "The policy's loss had weight 0: nothing was sampled or scored, this is a control."]
    trained = rl.get("policy_weight", 1)
    title, head = ("Rewards", "reward") if trained else ("Measured as rewards", "metric")
    table = _table([head, "weight", "scale", "what it is"], rows)
    return _section(title, table if trained or not table else table + note)


def _guards(rl: Mapping[str, Any]) -> list[str]:
    specs = list(map(_mapping, _list(rl.get("guard_specs"))))
    drops = ["any amount" if (m := s.get("max_drop")) is None else f"{m}, held" if s.get("hold") else m for s in specs]
    rows = [[s.get("name"), drop, s.get("help", "")] for s, drop in zip(specs, drops, strict=True)]
    what = "Measured, not rewarded: what they lose, the rewards have bought."
    table = _table(["metric", "may get worse by", "what it is"], rows)
    return _section("Guards", [what, "", *table] if table else [])


def _results(rl: Mapping[str, Any]) -> list[str]:
    results, rows = _mapping(rl.get("results")), []
    for name, m in _metrics(rl).items():
        change = _interval(m["difference"], sign=True)
        sure = _sure(m["difference"]) and float(change.split()[0]) != 0
        label = "all rewards together" if name == "reward" else f"{name}{'' if m['up'] else ' (lower is better)'}"
        cells = [md(label), _interval(m["start"]), _interval(m["now"]), f"**{change}**" if sure else change]
        rows.append([*map(Raw, cells), str(m["role"])])
    clips, step = md(results.get("clips")), md(results.get("step"))
    what = f"{clips} held-out clips, step {step} against step 0 (the checkpoint that it started from). In brackets "
    what += "bootstrap 95 % intervals; the difference is paired by clip, bold where its interval excludes 0."
    table = _table(["metric", "start", "now", "difference", "role"], rows)
    return _section("Results", [what, "", *table] if table else [])


def _check(facts: Mapping[str, Any], rl: Mapping[str, Any]) -> list[str]:
    """The numbers of a checkpoint that knows only means."""
    numbers = {k: f"{v:.4g}" for k, v in _mapping(facts.get("validation")).items() if _number(v)}
    return [] if _metrics(rl) else _section("Held-out numbers", _facts(numbers))


def _use(card: Card) -> list[str]:
    commands = [f"rlspeech {use}" for use in card.uses]
    return _section("How to use it", ["```bash", *commands, "```"] if commands else [])


def _limits(rl: Mapping[str, Any]) -> list[str]:
    lines = [UNTRIED]
    if rl:
        lines += LIMITS
        changes = {n: m["difference"] for n, m in _metrics(rl).items() if (m["difference"]["mean"] > 0) != m["up"]}
        worse = [f"{md(n)} {_interval(change, sign=True)}" for n, change in changes.items() if _sure(change)]
        lines += [f"- **Worse than at the start**: {'; '.join(worse)}."] if worse else []
    lines.append("- No licence is chosen here: that of the data and of the checkpoint that it started from decides.")
    return _section("Limits", lines)


# ----------------------------------------------------------------------------------------------------------------- parts


class Raw(str):
    """Text that is Markdown already."""


def _section(title: str, lines: Sequence[str]) -> list[str]:
    """Lines under their title; nothing where there are none."""
    return ["", f"## {title}", "", *lines] if lines else []


def _facts(values: Mapping[str, Any]) -> list[str]:
    return [f"- **{md(k)}**: {_value(v)}" for k, v in values.items() if v is not None and v != {} and v != []]


def _value(value: Any) -> str:
    """A value of the facts; of nested ones their parts."""
    if isinstance(value, Mapping):
        return ", ".join(f"{md(k)} {_value(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return md(f"{value:.6g}" if isinstance(value, float) else value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    cells = [[c if isinstance(c, Raw) else _value(c) for c in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in [list(heads), ["---"] * len(heads), *cells]] if cells else []


def _metrics(rl: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Results by metric, those that are whole: start, now, difference, up (more is better), role."""
    found = {}
    for name, m in _mapping(_mapping(rl.get("results")).get("metrics")).items():
        entry = {k: _mapping(_mapping(m).get(k)) for k in ("start", "now", "difference")}
        if all(_number(part.get("mean")) for part in entry.values()):
            up, role = m.get("higher_is_better") is not False, m.get("role", "")
            found[str(name)] = {**entry, "up": up, "role": role}
    return found


def _interval(values: Mapping[str, Any], *, sign: bool = False) -> str:
    mean, lo, hi = (values.get(k) for k in ("mean", "lo", "hi"))
    text = f"{mean:+.3f}" if sign else f"{mean:.3f}"
    text = f"{text} [{lo:+.3f}, {hi:+.3f}]" if sign and _number(lo) and _number(hi) else text
    return re.sub(r"-(0\.000)", r"+\1" if sign else r"\1", text)


def _sure(values: Mapping[str, Any]) -> bool:
    lo, hi = values.get("lo"), values.get("hi")
    return _number(lo) and _number(hi) and (lo > 0 or hi < 0)  # type: ignore[operator]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
