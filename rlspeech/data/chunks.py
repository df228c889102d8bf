"""Waveforms of any length through a model of limited memory: overlapping chunks, cross-faded, in batches that may fail alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["apply", "join", "spans"]

Infer = Callable[[Sequence[np.ndarray], Sequence[str]], list[np.ndarray]]


def spans(samples: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Cut ``samples`` into stretches of ``size`` that share ``overlap``; the last one is moved back so that it is as long as the rest.

    Raises:
        ValueError: an overlap that is not shorter than half a chunk.
    """
    if not 0 <= overlap * 2 < size:
        raise ValueError(f"an overlap of {overlap} samples does not fit chunks of {size}")
    if samples <= size:
        return [(0, samples)]
    starts = list(range(0, samples - size, size - overlap)) + [samples - size]
    return [(start, start + size) for start in starts]


def join(parts: Sequence[np.ndarray], where: Sequence[tuple[int, int]], samples: int) -> np.ndarray:
    """Put chunks together, (samples,) float32; where two or more lie over each other they are faded linearly, weights summing to 1."""
    total = np.zeros(samples, dtype=np.float32)
    weight = np.zeros(samples, dtype=np.float32)
    for i, (part, (start, end)) in enumerate(zip(parts, where, strict=True)):
        ramp = np.ones(end - start, dtype=np.float32)
        if i > 0:
            n = where[i - 1][1] - start
            ramp[:n] = (np.arange(n, dtype=np.float32) + 0.5) / n
        if i + 1 < len(where):
            n = end - where[i + 1][0]
            ramp[-n or len(ramp):] *= ((np.arange(n, dtype=np.float32) + 0.5) / max(n, 1))[::-1]
        total[start:end] += ramp * part
        weight[start:end] += ramp
    return total / weight


def apply(infer: Infer, wavs: Sequence[np.ndarray], keys: Sequence[str], *, batch: int, size: int,
          overlap: int) -> list[np.ndarray | Exception]:
    """Run ``infer`` over waveforms; one that fails costs itself.

    Args:
        infer: maps B waveforms and their B keys to B waveforms of the same lengths.
        wavs: (T_i,) float32 each, any length.
        keys: an id each; chunks of a long one get ids of their own.
        batch: chunks at once.
        size: longest chunk in samples.
        overlap: samples that neighbouring chunks share.

    Returns:
        A waveform or the exception, in order.
    """
    cuts = [spans(len(w), size, overlap) for w in wavs]
    jobs = [(i, c) for i, cut in enumerate(cuts) for c in range(len(cut))]
    jobs.sort(key=lambda job: cuts[job[0]][job[1]][1] - cuts[job[0]][job[1]][0])  # like lengths together: less padding
    done: dict[tuple[int, int], np.ndarray | Exception] = {}
    for at in range(0, len(jobs), batch):
        part = jobs[at : at + batch]
        pieces = [wavs[i][cuts[i][c][0] : cuts[i][c][1]] for i, c in part]
        names = [keys[i] if len(cuts[i]) == 1 else f"{keys[i]}#{c}" for i, c in part]
        done.update(zip(part, _guarded(infer, pieces, names), strict=True))
    results: list[np.ndarray | Exception] = []
    for i, cut in enumerate(cuts):
        got = [done.pop((i, c)) for c in range(len(cut))]
        failed = next((g for g in got if isinstance(g, Exception)), None)
        results.append(failed if failed is not None else join([g for g in got if isinstance(g, np.ndarray)], cut, len(wavs[i])))
    return results


def _guarded(infer: Infer, pieces: list[np.ndarray], names: list[str]) -> list[np.ndarray | Exception]:
    try:
        out = infer(pieces, names)
    except Exception as error:
        if len(pieces) == 1:
            return [error]
        _free_memory()
        return [result for piece, name in zip(pieces, names, strict=True) for result in _guarded(infer, [piece], [name])]
    return [_checked(o, p) for o, p in zip(out, pieces, strict=True)]


def _checked(out: np.ndarray, piece: np.ndarray) -> np.ndarray | Exception:
    if out.shape != piece.shape:
        return ValueError(f"the model returned {out.shape} for {piece.shape}")
    return out if np.isfinite(out).all() else ValueError("the model returned NaN or infinite samples")


def _free_memory() -> None:
    """A batch that was too large for the GPU has left blocks behind that single items need."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
