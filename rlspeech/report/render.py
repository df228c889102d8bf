"""From ``ReportData`` to HTML: what the template and the script of the page are handed."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.files import write_text
from rlspeech.report import ReportData, figures, mark, players, sentences, verdict

MAX_BYTES = 14_000_000  # of one report; clips share what the rest leaves
MIN_SOUND = 200_000  # bytes for players, however long the rest is


def render_report(path: Path, data: ReportData) -> Path:
    """Write the page, whole or not at all, and return ``path``. Raises ``UserError`` where it cannot be written."""
    write_text(path, render(data, MAX_BYTES))
    return path


def render(data: ReportData, max_bytes: int) -> str:
    """The page as one HTML text of about ``max_bytes`` at most."""
    import jinja2
    from markupsafe import Markup

    shipped = resources.files("rlspeech.report")
    files = ("template.html", "page.css", "page.js")
    template, style, script = (shipped.joinpath(name).read_text(encoding="utf-8") for name in files)
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters.update(number=_number, signed=_signed, breaks=_breaks)
    env.filters["pretty"] = lambda value: json.dumps(log.plain(value), indent=2, ensure_ascii=False)
    page = env.from_string(template)
    context: dict[str, Any] = {
        "data": data,
        "verdict": sentences(data),
        "summary": verdict(data),
        "mark": mark,
        "forest": _forest(data),
        "groups": figures.groups(data.plots),
        "plain_versions": all(not isinstance(v, Mapping | list | tuple) for v in data.versions.values()),
        "policy": _policy(style, script),
        "style": Markup(style),
        "script": Markup(script),
    }
    bare = page.render(**context, clips=[], notes=data.notes, handed="", labels=[], blind=False, systems=[])
    clips, remarks = players.fit(data.clips, max(MIN_SOUND, max_bytes - len(bare.encode("utf-8", "replace"))))
    clips = sorted(clips, key=lambda c: not c.clip.label)  # those that were chosen for a reason come first
    systems = list(dict.fromkeys([*data.means, *(p.system for c in clips for p in c.players)]))
    html = page.render(
        **context,
        clips=clips,
        notes=[*data.notes, *remarks],
        handed=Markup(_handed(data, clips, systems)),
        labels=list(dict.fromkeys(c.clip.label for c in clips if c.clip.label)),
        blind=any(len({p.system for p in c.players if p.audio}) > 1 for c in clips),
        systems=systems,
    )
    # half a surrogate pair in someone's file name must not end the page
    return html.encode("utf-8", "replace").decode("utf-8")


def _policy(style: str, script: str) -> str:
    """No network at all; styles and scripts only those that were shipped."""
    styles, scripts = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    own = f"style-src 'sha256-{styles}'; script-src 'sha256-{scripts}'"
    return f"default-src 'none'; img-src data:; media-src data: blob:; {own}; base-uri 'none'; form-action 'none'"


def _handed(data: ReportData, clips: Sequence[players.Players], systems: Sequence[str]) -> str:
    """What the script has to know, as JSON that cannot end its element."""

    def player(p: players.Player) -> dict[str, Any]:
        place = {"system": systems.index(p.system), "audio": bool(p.audio), "level": round(p.level_db, 2)}
        return {**place, "scores": p.scores}

    def clip(c: players.Players) -> dict[str, Any]:
        facts = {"key": c.clip.key, "label": c.clip.label, "seconds": round(c.seconds, 3)}
        return {**facts, "players": list(map(player, c.players))}

    facts = {
        "title": data.title,
        "systems": list(systems),
        "baseline": data.baseline,
        "clips": list(map(clip, clips)),
        "compared": [systems.index(s) for s in data.deltas if s in systems],
        "metrics": [{"name": m.name, "up": m.higher_is_better} for m in data.metrics],
    }
    text = json.dumps(log.plain(facts), ensure_ascii=True, allow_nan=False)
    facts["id"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    text = json.dumps(log.plain(facts), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _forest(data: ReportData) -> dict[str, dict[str, tuple[float, float, float]]]:
    """system -> metric -> lower end, mean and upper end from 4 to 96, with 0 at 50; a row of the table has one scale."""
    bars: dict[str, dict[str, tuple[float, float, float]]] = {s: {} for s in data.deltas}
    for m in (m.name for m in data.metrics):
        row = {s: d[m] for s, d in data.deltas.items() if m in d and math.isfinite(d[m].mean)}
        known = {s: math.isfinite(i.lo) and math.isfinite(i.hi) for s, i in row.items()}
        ends = {s: (i.lo, i.mean, i.hi) if known[s] else (i.mean,) * 3 for s, i in row.items()}
        scale = max((abs(v) for e in ends.values() for v in e), default=0.0)
        for system, (lo, mean, hi) in ends.items():
            low, middle, high = (50 + 46 * v / scale if scale else 50.0 for v in (lo, mean, hi))
            bars[system][m] = (round(low, 1), round(middle, 1), round(high, 1))
    return bars


def _number(value: float | None, digits: int = 3) -> str:
    """Rounded, with fewer digits for large values; what rounds to zero has no sign."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits if abs(value) < 100 else 1}f}"
    return text.replace("-", "−" if float(text) else "")


def _signed(value: float | None) -> str:
    text = _number(value)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.–") else text


def _breaks(name: str) -> str:
    """Escaped, and may be broken after an underscore."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))
