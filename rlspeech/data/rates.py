"""Error rates of a corpus of texts, and their intervals: sums over sums (``text`` has the alignment, and needs no numpy)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rlspeech.data.text import align, get_normaliser, units
from rlspeech.stats import Interval, draws_interval, resampled_sums

__all__ = ["corpus_interval", "corpus_rate"]


def corpus_rate(texts: Iterable[tuple[str, str, str | None]], normaliser: str) -> float:
    """Errors over reference units of (reference, hypothesis, language): sums over sums, not a mean of rates.

    Texts whose reference is empty are left out; nan without any.
    """
    errors, wanted = _errors(texts, normaliser).sum(0)
    return float(errors / wanted) if wanted else float("nan")


def corpus_interval(texts: Iterable[tuple[str, str, str | None]], normaliser: str, seed: int = 0) -> Interval:
    """The same with its bootstrap 95 % interval over texts; no interval below two of them."""
    counts = _errors(texts, normaliser)
    errors, wanted = counts.sum(0)
    sums = resampled_sums(counts, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        return draws_interval(float(errors / wanted) if wanted else float("nan"), sums[:, 0] / sums[:, 1], len(counts))


def _errors(texts: Iterable[tuple[str, str, str | None]], normaliser: str) -> np.ndarray:
    """(K, 2): errors and reference units of each text in which something is said."""
    normalise, rows = get_normaliser(normaliser), list[tuple[int, int]]()
    for reference, hypothesis, language in texts:
        if wanted := units(normalise(reference), language):
            rows.append((align(wanted, units(normalise(hypothesis), language)).errors, len(wanted)))
    return np.array(rows, dtype=np.float64).reshape(-1, 2)
