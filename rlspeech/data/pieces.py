"""Long recordings in pieces that end in pauses, read as they are needed: an hour costs the memory of one piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rlspeech.data.audio import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, AudioError

__all__ = ["cut", "pause", "stream"]

FRAME_S, PAUSE_S = 0.01, 0.2
EARLIEST = 0.4  # of the longest piece: where the search for a pause begins
BLOCK_S = 10.0


def pause(wav: np.ndarray, sample_rate: int, low: int, high: int) -> int:
    """The middle of the quietest 0.2 s between samples ``low`` and ``high``, the last of several.

    Args:
        wav: (T,) float32.
        sample_rate: in Hz.
        low, high: where to look, in samples.
    """
    hop, width = max(1, int(FRAME_S * sample_rate)), round(PAUSE_S / FRAME_S)
    stretch = np.asarray(wav[low:high], dtype=np.float64)
    frames = len(stretch) // hop
    if frames < width + 1:
        return high
    power = (stretch[: frames * hop].reshape(frames, hop) ** 2).mean(1)
    smooth = np.convolve(power, np.ones(width) / width, "valid")  # of `width` frames from each frame on
    best = len(smooth) - 1 - int(np.argmin(np.round(smooth[::-1], 12)))  # rounding: convolution leaves dust on silence
    return low + int((best + width / 2) * hop)


def cut(wav: np.ndarray, sample_rate: int, max_s: float) -> list[tuple[int, int]]:
    """Where to cut (T,) so that no piece is longer than ``max_s``: (start, end) in samples, without gaps. Short ones stay whole."""
    longest, start, found = max(1, int(max_s * sample_rate)), 0, []
    while len(wav) - start > longest:
        end = pause(wav, sample_rate, start + int(EARLIEST * longest), start + longest)
        found.append((start, end))
        start = end
    return [*found, (start, len(wav))]


def stream(
    path: str | Path, sample_rate: int, max_s: float, offset_s: float = 0.0, duration_s: float | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Read a file piece by piece; the pieces are those of ``cut``.

    Args:
        path: any format libsndfile reads.
        sample_rate: of the pieces, in Hz.
        max_s: longest piece.
        offset_s, duration_s: the stretch of the file, in seconds; None reads to the end.

    Yields:
        where the piece starts, in seconds from ``offset_s``, and (T,) float32.

    Raises:
        AudioError: as ``load_audio``; a file that is damaged in its middle shows it when that is reached.
    """
    longest, start = max(1, int(max_s * sample_rate)), 0
    held = np.zeros(0, dtype=np.float32)
    for block in _blocks(Path(path), sample_rate, offset_s, duration_s):
        held = np.concatenate([held, block])
        while len(held) > longest:
            end = pause(held, sample_rate, int(EARLIEST * longest), longest)
            yield start / sample_rate, held[:end]
            start, held = start + end, held[end:]
    if len(held) == 0 and start == 0:
        raise AudioError("no samples")
    if len(held):
        yield start / sample_rate, held


def _blocks(path: Path, sample_rate: int, offset_s: float, duration_s: float | None) -> Iterator[np.ndarray]:
    """Mono blocks (T,) float32 at ``sample_rate``."""
    import soundfile as sf
    import soxr

    if not path.is_file():
        raise AudioError("missing file")
    if path.stat().st_size == 0:
        raise AudioError("empty file (0 bytes)")
    try:
        with sf.SoundFile(path) as file:
            native = file.samplerate
            if not MIN_RATE_HZ <= native <= MAX_RATE_HZ or file.channels > MAX_CHANNELS:
                raise AudioError(f"absurd header: {native} Hz, {file.channels} channels")
            if offset_s > 0:
                file.seek(min(int(offset_s * native), file.frames))
            left = None if duration_s is None else int(duration_s * native)
            change = (
                soxr.ResampleStream(native, sample_rate, 1, dtype="float32", quality="HQ")
                if native != sample_rate
                else None
            )
            while left is None or left > 0:
                size = int(BLOCK_S * native) if left is None else min(left, int(BLOCK_S * native))
                wav = file.read(size, dtype="float32", always_2d=True).mean(axis=1)
                if not np.isfinite(wav).all():
                    raise AudioError("NaN or infinite samples")
                left = None if left is None else left - len(wav)
                last = len(wav) < size or left == 0
                yield wav if change is None else change.resample_chunk(wav, last=last)
                if last:
                    return
    except (sf.LibsndfileError, RuntimeError, OSError) as error:
        raise AudioError(f"unreadable: {str(error).splitlines()[0][:120]}") from error
