"""A contact sheet of crops: one picture on which a person sees at a glance whether the crops are what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlspeech.data.lips import LipsError, load_lips
from rlspeech.types import Utterance

__all__ = ["MOST", "contact_sheet"]

MOST, ACROSS = 24, 8  # clips, and crops of each
TILE, GAP, LABEL = 96, 2, 184  # pixels
POOR = 0.9  # face rates below are marked


def contact_sheet(rows: Sequence[Utterance], path: str | Path, most: int = MOST, across: int = ACROSS) -> int:
    """Draw a row of crops at even times for each clip, worst face rates first.

    Args:
        rows: with ``lips_filepath``, and ``face_rate`` in ``extra`` where faces were looked for.
        path: PNG file.
        most: clips at most; of equal face rates those are taken that lie evenly over the manifest.
        across: crops a clip.

    Returns:
        how many clips are on it.

    Each crop carries a thin cross at its middle edges, where the mouth should be.
    """
    import cv2

    chosen = _chosen(rows, most)
    lines = []
    for utt in chosen:
        try:
            frames = load_lips(utt.lips_filepath or "")
        except LipsError:
            continue
        lines.append(
            np.concatenate([_label(utt, len(frames)), *(_tile(frames[i]) for i in _even(len(frames), across))], axis=1)
        )
    if not lines:
        return 0
    half = -(-len(lines) // 2) if len(lines) > 6 else len(lines)  # two columns: the sheet stays as wide as a screen
    blank = np.full_like(lines[0], 255)
    columns = [lines[:half], lines[half:] + [blank] * (2 * half - len(lines))] if half < len(lines) else [lines]
    sheet = np.concatenate([np.concatenate(column, axis=0) for column in columns], axis=1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet)
    return len(lines)


def _chosen(rows: Sequence[Utterance], most: int) -> list[Utterance]:
    """A half of the sheet for the worst, the other half for a fair sample of the rest; sorted by face rate."""
    ranked = sorted(rows, key=_rate)
    if len(ranked) <= most:
        return ranked
    worst = ranked[: most // 2]
    there = {id(utt) for utt in worst}
    rest = [utt for utt in rows if id(utt) not in there]
    return sorted([*worst, *(rest[i] for i in _even(len(rest), most - len(worst)))], key=_rate)


def _rate(utt: Utterance) -> float:
    rate = utt.extra.get("face_rate")
    return float(rate) if isinstance(rate, int | float) else 1.0


def _even(length: int, count: int) -> list[int]:
    return [int(i) for i in np.linspace(0, length - 1, count).round()]


def _tile(frame: np.ndarray) -> np.ndarray:
    import cv2

    if frame.shape != (TILE, TILE):
        frame = cv2.resize(frame, (TILE, TILE), interpolation=cv2.INTER_AREA)
    tile = frame.copy()
    middle, mark = TILE // 2, 5
    for cut in (np.s_[middle, :mark], np.s_[middle, -mark:], np.s_[:mark, middle], np.s_[-mark:, middle]):
        tile[cut] = 255
    return np.pad(tile, ((0, GAP), (0, GAP)), constant_values=255)


def _label(utt: Utterance, frames: int) -> np.ndarray:
    import cv2

    plain = utt.id.encode("ascii", "replace").decode()  # the drawing knows no other letters
    rate = utt.extra.get("face_rate")
    notes = [
        f"{frames} frames, {utt.duration:.1f} s",
        "no face looked for" if rate is None else f"face in {100 * _rate(utt):.0f} %",
    ]
    if "video_short_s" in utt.extra:
        notes.append(f"{utt.extra['video_short_s']:.2f} s short")
    poor = rate is not None and _rate(utt) < POOR
    label = np.full((TILE + GAP, LABEL), 0 if poor else 255, dtype=np.uint8)  # dark: look here
    names = [plain[i : i + 24] for i in range(0, min(len(plain), 48), 24)]
    for i, line in enumerate([*names, *notes]):
        cv2.putText(label, line, (4, 16 + 19 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255 if poor else 0, 1, cv2.LINE_AA)
    return label
