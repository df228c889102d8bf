"""What a report shows besides text: learning curves as inline SVG, spectrograms as PNG, players as FLAC. All of it inside the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from markupsafe import Markup

    from rlspeech.report import Clip, Edit

__all__ = ["Player", "Players", "curves", "players", "spectrogram_db"]

INK = "#123456"  # replaced by CSS currentColor, so that the drawing follows light and dark
LINE = "#3b82f6"
MAX_CURVES = 24
MAX_POINTS = 600
RANGE_DB = 70.0


@dataclass(frozen=True, slots=True)
class Player:
    """One system's sound and picture, as data addresses."""

    system: str
    audio: str
    picture: str
    scores: dict[str, float | None]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Players:
    """One clip's players and texts; ``size`` is their share of the page in bytes."""

    key: str
    note: str
    seconds: float
    players: list[Player]
    size: int
    edits: Mapping[str, Sequence[Edit]] = field(default_factory=dict)


def players(clip: Clip, max_s: float) -> Players:
    """Cut, encode and draw every system of a clip; the spectrograms share one scale.

    Raises:
        ValueError: a waveform that is empty or not finite.
    """
    cut = {system: np.asarray(wav, dtype=np.float32)[: int(max_s * clip.sample_rate)] for system, wav in clip.audio.items()}
    for system, wav in cut.items():
        if wav.ndim != 1 or len(wav) == 0 or not np.isfinite(wav).all():
            raise ValueError(f"the audio of {system} cannot be shown")
    pictures = {system: spectrogram_db(wav) for system, wav in cut.items()}
    top = max((float(p.max()) for p in pictures.values()), default=0.0)
    made = [Player(system, _data("audio/flac", _flac(wav, clip.sample_rate)), _data("image/png", _png(pictures[system], top)),
                   clip.scores.get(system, {}), clip.texts.get(system, "")) for system, wav in cut.items()]
    seconds = max((len(w) for w in cut.values()), default=0) / clip.sample_rate
    written = sum(len(e.reference) + len(e.hypothesis) for edits in clip.edits.values() for e in edits)
    return Players(clip.key, clip.note, seconds, made, sum(len(p.audio) + len(p.picture) for p in made) + written, clip.edits)


def spectrogram_db(wav: np.ndarray, n_fft: int = 512, hop: int = 128, max_frames: int = 480) -> np.ndarray:
    """Power spectrogram in dB, (n_fft / 2 + 1, at most ``max_frames``); long clips are averaged over time."""
    padded = np.pad(wav, (n_fft // 2, n_fft // 2 + max(0, n_fft - len(wav))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(n_fft).astype(np.float32), axis=1)) ** 2
    if len(power) > max_frames:
        edges = np.linspace(0, len(power), max_frames + 1).astype(int)[:-1]
        power = np.add.reduceat(power, edges) / np.diff([*edges, len(power)])[:, None]
    return 10 * np.log10(power.T + 1e-10)


def curves(rows: Sequence[Mapping[str, Any]], salt: str = "") -> list[Markup]:
    """One small inline SVG for every number in ``metrics.jsonl`` over the steps; constant ones and clocks are left out.

    Args:
        rows: dicts with ``step``.
        salt: keeps the ids of several drawings on a page apart.
    """
    import matplotlib

    style: dict[Any, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    style |= {"svg.fonttype": "none", "font.size": 8, "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False,
              "axes.linewidth": 0.6, "text.parse_math": False}
    drawn = []
    for name, (steps, values) in _series(rows).items():
        with matplotlib.rc_context({**style, "svg.hashsalt": f"{salt} {name}"}):
            drawn.append(_curve(name, steps, values))
    return drawn


def _curve(name: str, steps: np.ndarray, values: np.ndarray) -> Markup:
    from markupsafe import Markup
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.3, 1.8), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    many = len(steps) > 60
    dots = "o" if len(steps) <= 25 else None
    axes.plot(steps, values, color=LINE, linewidth=1.2, alpha=0.35 if many else 1.0, marker=dots, markersize=2.5)
    if many:
        axes.plot(steps, _smooth(values), color=LINE, linewidth=1.4)
    axes.set_title(name, fontsize=8.5, loc="left")
    axes.grid(alpha=0.15, color=INK, linewidth=0.5)
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return Markup(svg[svg.index("<svg"):].replace(INK, "currentColor"))  # matplotlib's XML writer has escaped the name


def _series(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name in ("step", "time", "seconds") or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                steps, values = found.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(float(value))
    useful = {k: (np.array(s), np.array(v)) for k, (s, v) in found.items() if len(s) > 1 and max(v) > min(v)}
    return {k: _thin(s, v) for k, (s, v) in list(useful.items())[:MAX_CURVES]}


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(steps) <= MAX_POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), MAX_POINTS + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(steps)])
    return steps[edges], np.add.reduceat(values, edges) / counts


def _smooth(values: np.ndarray) -> np.ndarray:
    width = max(3, len(values) // 20)
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _flac(wav: np.ndarray, sample_rate: int) -> bytes:
    import soundfile as sf

    peak = float(np.abs(wav).max())
    out = io.BytesIO()
    sf.write(out, wav if peak <= 1 else wav / peak, sample_rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def _png(picture_db: np.ndarray, top_db: float) -> bytes:
    from matplotlib import image

    out = io.BytesIO()
    image.imsave(out, picture_db, cmap="magma", vmin=top_db - RANGE_DB, vmax=top_db, origin="lower", format="png")
    return out.getvalue()


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
