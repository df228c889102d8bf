"""What a file of sound is and holds: one list of kinds and one reader for every command.

How long a recording is, is what decodes of it; what its header promises is believed only where that is the same by construction.
libsndfile reads what it reads to the end; PyAV (FFmpeg) reads the rest: containers (m4a, mp4 ...), FLAC whose header has no length (a
pipe) or one that ends before its last frame, MP3 whose first frame does not count the others (variable rates, joined files), joined
FLAC, and what libsndfile refuses.
Joined Ogg files (chained streams) are read one after the other.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rlspeech import log
from rlspeech.data.tars import in_tar, packed, state_of
from rlspeech.names import PULL, is_pointer

# By its suffix: sound, and videos, of which the sound track is read.
AUDIO_SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aiff .aif .aifc .au .w64 .rf64 .caf .sph .m4a .m4b .aac .wma .mka .amr".split()
)
VIDEO_SUFFIXES = frozenset(".mp4 .mpg .mpeg .m4v .mov .avi .mkv .webm .ts .mts .flv .wmv .ogv .3gp".split())
# a playlist could name other files and addresses: only formats that hold their own sound and pictures are opened
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg,mxf,ivf"
    ",mp3,aac,flac,wav,w64,aiff,au,caf,amr,nistsphere"
)
CANCELLED = 1e-3  # of the power of a file's channels, in their mean
# a header beyond these is damaged, and would ask for absurd memory
MIN_RATE_HZ, MAX_RATE_HZ, MAX_CHANNELS = 1000, 768_000, 64
MOST = 2**28  # samples that are asked for at once; beyond it a header may be wrong, and blocks are read
BLOCK = 2**20
TOLERANCE_S = 0.1  # between what a header promises and what decodes
# where a file's own size stands
OUTER = {b"FORM": (4, ">I", 8), b"RF64": (20, "<Q", 8), b"riff": (16, "<Q", 0), b".snd": (8, ">I", 24)}
remarks: dict[str, str] = {}  # files of which less could be read than they promise -> what is wrong with them


class AudioError(Exception):
    """A file or waveform that cannot be used; ``reason`` is short enough for a table."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SoundInfo(NamedTuple):
    """How long a file is that decodes, its rate and channels, and how long its header says it is (0 where that says nothing)."""

    seconds: float
    sample_rate: int
    channels: int
    promised_s: float


class Reader:
    """A file of sound, read in order and to its end.

    Args:
        path: a regular file that is not empty.

    ``samplerate`` and ``channels`` are the file's, ``position`` is in samples; ``promised_s`` is 0 where the header says nothing.

    Raises:
        AudioError: unreadable, then or while it is read.
    """

    def __init__(self, path: Path) -> None:
        import soundfile as sf

        self.path, self.position, self.promised_s, self.damage = path, 0, 0.0, ""
        self._errors = (sf.LibsndfileError, RuntimeError, OSError)
        self._blocks: Iterator[np.ndarray] | None = None  # what is read where libsndfile is not asked
        self._rest = np.zeros((0, 0), dtype=np.float32)
        self._file: Any = None
        links, refused, whole = _links(path), "", True
        try:
            self._file = sf.SoundFile(BytesIO(links[0]) if links else os.fsencode(path))
            self.samplerate, self.channels = int(self._file.samplerate), int(self._file.channels)
            if 0 < self._file.frames < 2**40:
                promised, whole = _promised(path, self._file.frames)
                self.promised_s = promised / self.samplerate
            else:  # unknown: a pipe
                whole = False
        except self._errors as error:
            refused, whole = first_line(error), False
        if links and not refused:
            self._blocks, self.promised_s = self._chain(links), 0.0
        elif not whole:
            self._decode(refused)
        if not MIN_RATE_HZ <= self.samplerate <= MAX_RATE_HZ or not 0 < self.channels <= MAX_CHANNELS:
            raise AudioError(f"unreadable: the header claims {self.samplerate} Hz and {self.channels} channels")

    def read(self, samples: int) -> np.ndarray:
        """The next samples (n, C) float32, fewer than asked for only where the file ends."""
        if self._blocks is None:
            start = self.position
            try:
                wav = self._file.read(samples, dtype="float32", always_2d=True)
            except self._errors as error:  # the file ends before its header says so, or is damaged: PyAV reads on
                self._decode(first_line(error))
                self.position = 0
                self.skip(start)
            else:
                self.position += len(wav)
                return np.asarray(wav)
        assert self._blocks is not None
        parts, have = [self._rest.reshape(-1, self.channels)], len(self._rest)
        while have < samples and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            have += len(block)
        wav = np.concatenate(parts)
        wav, self._rest = wav[:samples], wav[samples:]
        self.position += len(wav)
        return wav

    def skip(self, samples: int) -> None:
        """Go on behind the next samples, at most to the end."""
        if self._blocks is None:
            try:
                self.position = self._file.seek(min(self.position + samples, self._file.frames))
                return
            except self._errors:
                pass  # what is read shows it
        while samples > 0 and len(wav := self.read(min(samples, BLOCK))):
            samples -= len(wav)

    def counted(self) -> int | None:
        """The samples of a file that was just opened, where they are known without decoding: FLAC may end before its header says so."""
        if self._blocks is None and self._file.format == "FLAC":
            try:
                self._file.seek(self._file.frames - 1)
                self._file.read(1)
            except self._errors as error:
                self._decode(first_line(error))
        return None if self._blocks is not None else int(self._file.frames)

    def remark(self) -> str:
        """What is wrong with a file of which some could be read; asked at its end."""
        held_s = self.position / self.samplerate
        if self.promised_s - held_s > TOLERANCE_S:
            return f"truncated: its header promises {self.promised_s:.2f} s, it holds {held_s:.2f} s"
        return self.damage or ("truncated: its last page is missing" if _unfinished(self.path) else "")

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        if self._blocks is not None:
            self._blocks.close()  # type: ignore[attr-defined]

    def _chain(self, links: list[bytes]) -> Iterator[np.ndarray]:
        """Blocks of files that stand one behind the other in one file, at the rate of the first."""
        import soundfile as sf
        import soxr

        for link in links:
            try:
                wav, rate = sf.read(BytesIO(link), dtype="float32", always_2d=True)
            except self._errors as error:
                self._note(f"damaged: {first_line(error)}")
                continue
            if wav.shape[1] != self.channels:
                wav = np.repeat(wav.mean(axis=1, keepdims=True), self.channels, axis=1)
            yield wav if rate == self.samplerate else soxr.resample(wav, rate, self.samplerate, quality="HQ")

    def _decode(self, refused: str) -> None:
        """Let PyAV read the file from its start; ``refused`` says why libsndfile does not."""
        frames = self._frames()
        try:
            self.samplerate, self.channels, promised_s = next(frames)
        except AudioError as error:
            known = refused and "recognised" not in refused  # of a kind of its own
            raise AudioError(f"unreadable: {refused}" if known else error.reason) from error
        self._blocks, self.promised_s = frames, self.promised_s or promised_s

    def _frames(self) -> Iterator[Any]:
        """The rate, the channels and the promised length in seconds, then blocks (n, C) float32."""
        import av

        with open_container(self.path) as container:
            if not container.streams.audio:
                raise AudioError("no sound track")
            stream, kind, resampler = container.streams.audio[0], None, None
            for frame in packets(container, stream, self._note):
                if resampler is None:
                    rate, layout = frame.sample_rate, frame.layout
                    told = stream.duration and "mp4" in container.format.name
                    yield rate, layout.nb_channels, float(stream.duration * stream.time_base) if told else 0.0
                    if container.streams.video:  # the sound may begin behind the pictures
                        lead_s = max(0.0, (frame.time or 0.0) - (container.start_time or 0) / 1e6)
                        yield np.zeros((round(lead_s * rate), layout.nb_channels), dtype=np.float32)
                if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):
                    resampler = av.AudioResampler(format="flt", layout=layout, rate=rate)
                assert resampler is not None
                for piece in resampler.resample(frame):
                    yield piece.to_ndarray().reshape(-1, layout.nb_channels)
            if resampler is None:
                raise AudioError(self.damage or "no samples")

    def _note(self, damage: str) -> None:
        self.damage = damage


@contextmanager
def open_container(path: Path) -> Iterator[Any]:
    """Open a file with PyAV. Raises ``AudioError`` where it cannot be."""
    try:
        import av
    except ImportError as error:
        raise AudioError(f"PyAV is not usable ({error}): pip install 'av>=13'") from error
    try:
        # a handle without a name: no part of one is taken for a protocol, and it may be of any encoding
        file = os.fdopen(os.open(path, os.O_RDONLY), "rb")
        container = av.open(file, options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise AudioError(f"unreadable: {first_line(error)}") from error
    with file, container:
        yield container


def packets(container: Any, stream: Any, note: Callable[[str], None]) -> Iterator[Any]:
    """Frames of every packet of a stream that can be decoded; ``note`` is called with what was wrong with the others."""
    import av

    demuxed = container.demux(stream)
    while True:
        try:
            packet = next(demuxed)
        except StopIteration:
            return
        except (av.error.FFmpegError, OSError) as error:
            note(f"truncated: {first_line(error)}")
            return
        try:
            yield from packet.decode()
        except (av.error.FFmpegError, ValueError) as error:
            note(f"damaged: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The message without the path, which the row names anyway: equal reasons are counted."""
    line = (str(error).splitlines() or [""])[0]
    line = re.sub(r"Error opening ('.*?'|\".*?\"|b'.*?'|<.*?>): |\[Errno -?\d+\] |: '.*", "", line)
    return line.strip()[:100] or type(error).__name__


def regular_file(path: str | Path) -> Path:
    """The path, where it is one of a file with something in it. Raises ``AudioError``: missing, empty, a pipe, a pointer of Git LFS."""
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size:
            if is_pointer(path):
                raise AudioError(f"Git LFS pointer, not audio: run {PULL}")
            return path
    except (FileNotFoundError, NotADirectoryError):
        if in_tar(path):
            return path
        raise AudioError("missing file") from None
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links, a NUL
        raise AudioError(f"unreadable: {getattr(error, 'strerror', None) or 'no name that a file can have'}") from error
    kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"  # whose end may never come
    raise AudioError("empty file (0 bytes)" if stat.S_ISREG(status.st_mode) else f"no file but {kind}")


@contextmanager
def open_audio(path: str | Path) -> Iterator[Reader]:
    """Open a file to read. Raises ``AudioError``: see ``regular_file``, or unreadable, then or while it is read."""
    file = regular_file(path)
    with TemporaryDirectory() if in_tar(file) else nullcontext() as folder:
        if folder:  # decoders and maps of memory take files alone
            content, file = packed(file), Path(folder, f"x{file.suffix}")
            file.write_bytes(content)
        with closing(Reader(file)) as reader:
            yield reader


def read_audio(
    path: str | Path, offset_s: float = 0.0, duration_s: float | None = None, channels: int = 1, slack_s: float = 0.0
) -> tuple[np.ndarray, int]:
    """Read a file, or a stretch of it, at its own rate.

    Args:
        path: see ``AUDIO_SUFFIXES`` and ``VIDEO_SUFFIXES``.
        offset_s: where to start, in seconds of the file.
        duration_s: how much to read at most; None and 0 read to the end.
        channels: 1 averages what there is; 2 keeps both ears, and gives both a mono file.
        slack_s: a stretch that ends less than this before the file does goes to its end: durations in manifests are rounded.

    Returns:
        (T,) float32, or (2, T) where ``channels`` is 2, and the rate in Hz. Of a file that ends before its header or ``duration_s`` says so
        what is there; it is told once, and stands in ``remarks``.

    Raises:
        AudioError: missing, empty, unreadable, non-finite, too long for the memory, or of three channels and more where two are asked for.
    """
    with open_audio(path) as file:
        rate = file.samplerate
        if channels == 2 and file.channels > 2:
            raise AudioError(f"{file.channels} channels instead of 2")
        file.skip(samples_of(offset_s, rate))
        wanted, most = samples_of(duration_s, rate) if duration_s else 2**62, MOST // file.channels
        parts, ended, power = [np.zeros((channels, 0), dtype=np.float32)], False, 0.0
        try:
            while wanted > 0 and not ended:
                block = file.read(min(wanted, most))
                ended, wanted = len(block) < min(wanted, most), wanted - len(block)
                parts.append(_mixed(block, channels))
                power += float(np.square(block).mean(axis=1).sum()) if file.channels > channels else 0.0
            if not ended and slack_s and len(block := file.read(slack := samples_of(slack_s, rate))) < slack:
                ended = True
                parts.append(_mixed(block, channels))
            wav = np.concatenate(parts, axis=1)
        except MemoryError:
            raise AudioError("too long for this machine's memory") from None
        if ended and (remark := file.remark()):
            remember(path, remark)
        elif ended and duration_s and (there := wav.shape[1] / rate) < duration_s - TOLERANCE_S:
            span = f"{there:.2f} s from {offset_s:.2f} s on, not {duration_s:.2f}"
            remember(path, f"it ends before the manifest says so: {span}")
        if power and float(np.square(wav).sum()) < CANCELLED * power:
            hint = "keep one of them, e.g. sox IN OUT remix 1"
            remember(path, f"its channels cancel each other out (opposite phase): {hint}")
    if wav.shape[1] == 0:
        raise AudioError("no samples")
    if not np.isfinite(wav).all():
        raise AudioError("NaN or infinite samples")
    return wav[0] if channels == 1 else wav, rate


def samples_of(seconds: float, rate: int) -> int:
    """Whole samples in a time; of one that six decimals name, as manifests do, none is lost."""
    return int(max(0.0, seconds) * rate + 0.05)


def _mixed(block: np.ndarray, channels: int) -> np.ndarray:
    """(C, n) of (n, any)."""
    if channels == 1:
        return block.mean(axis=1)[None] if block.shape[1] > 1 else block.T
    return np.repeat(block.T, 2 // block.shape[1], axis=0)


def remember(path: str | Path, remark: str) -> None:
    """Say once what is wrong with a file that is used as far as it goes."""
    if remarks.get(str(path)) != remark:
        remarks[str(path)] = remark
        log.warn(f"{path}: {remark}")


def sound_info(path: str | Path) -> SoundInfo:
    """Length, rate and channels of a file; where the header is no proof the file is decoded. Raises ``AudioError``."""
    state: tuple[int, ...] = ()
    with suppress(OSError, ValueError):  # opening it says what is wrong
        state = state_of(path)
    return _info(str(path), state)


@lru_cache(maxsize=4096)
def _info(path: str, _state: tuple[int, ...]) -> SoundInfo:
    with open_audio(path) as file:
        samples = file.counted()
        while samples is None:
            if len(file.read(BLOCK)) < BLOCK:
                samples = file.position
        if not samples:
            raise AudioError("no samples")
        return SoundInfo(samples / file.samplerate, file.samplerate, file.channels, file.promised_s)


def _links(path: Path) -> list[bytes]:
    """The Ogg files that were joined to make this one; none where it is a single one, or something else."""
    with path.open("rb") as file:
        if file.read(4) != b"OggS":
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            starts, behind = list[int](), -1
            for found in re.finditer(rb"OggS\0[\2\6]", content):  # the first page of a stream
                at = found.start()
                starts += [at] if at != behind else []  # streams that run side by side begin together
                lacing = content[at + 27 : at + 27 + sum(content[at + 26 : at + 27])]
                behind = at + 27 + len(lacing) + sum(lacing)
            ends = [*starts[1:], len(content)]
            return [content[a:b] for a, b in zip(starts, ends, strict=True)] if len(starts) > 1 else []


def _promised(path: Path, samples: int) -> tuple[float, bool]:
    """How many samples the header promises (0: it says nothing), and whether libsndfile, which finds ``samples``, finds all there are."""
    size, start = os.path.getsize(path), 0
    with path.open("rb") as file:
        head = file.read(40)
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
            return _wav_samples(file, size) or samples, True
        if head[:4] in OUTER and len(head) == 40:
            at, form, more = OUTER[head[:4]]
            claimed = struct.unpack_from(form, head, at)[0]
            whole = _streamed(claimed, 8 * struct.calcsize(form)) or claimed + more <= size + 64
            return samples if whole else samples * claimed / size, True
        if head[:4] == b"fLaC":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return samples, content.find(b"fLaC\0\0\0\x22", 4) < 0 and _flac_end(content) <= samples
        if head[:7] == b"NIST_1A" and (found := re.search(rb"sample_count -i (\d+)", head + file.read(984))):
            return int(found[1]), True
        while head[:3] == b"ID3":
            start += 10 + sum(b << s for b, s in zip(head[6:10], (21, 14, 7, 0), strict=True))
            file.seek(start)
            head = file.read(40)
        if head[:1] != b"\xff" or head[1:2] < b"\xe0":
            return samples, True
        file.seek(start)
        # the first frame of most MP3 files says how many frames there are, and how many bytes they take
        first = file.read(192)
        at = max(first.find(b"Xing", 0, 180), first.find(b"Info", 0, 180))
        if at < 0 or len(first) < 192 or first[at + 7] & 3 != 3:
            return 0, False
        return samples, abs(size - start - struct.unpack_from(">I", first, at + 12)[0]) < 1500


def _flac_end(content: mmap.mmap) -> int:
    """Samples up to the end of the last frame of FLAC (RFC 9639, 9.1), 0 where none is found; libsndfile stops where the header says."""
    block, frame = (int.from_bytes(content[a:b], "big") for a, b in ((8, 10), (15, 18)))  # samples; bytes, 0: unknown
    tail = content[-(frame + 2**12 if frame else 2**18) :]
    for sync in reversed([*re.finditer(rb"\xff[\xf8\xf9]", tail)]):
        head = tail[sync.start() :][:17].ljust(17)
        more = max(0, 7 - (head[4] ^ 0xFF).bit_length())  # bytes that the number goes on for, as in UTF-8
        number = head[4] & 0x7F >> more + (more > 0)
        for byte in head[5 : 5 + more]:
            number = number << 6 | byte & 0x3F
        code, at = head[2] >> 4, 5 + more
        size = 192 if code == 1 else 144 << code if code < 6 else 1 << code
        if code in (6, 7):
            size = 1 + int.from_bytes(head[at : at + code - 5], "big")
            at += code - 5
        at += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
        rest = int.from_bytes(head[: at + 1], "big")
        while rest.bit_length() > 8:  # CRC-8: what looks like the start of a frame may be sound
            rest ^= 0x107 << rest.bit_length() - 9
        if rest == 0:
            return number * (1 if head[1] & 1 else block) + size
    return 0


def _unfinished(path: Path) -> bool:
    """Whether an Ogg file lacks the page that ends it."""
    with path.open("rb") as file:
        if file.read(4) != b"OggS":
            return False
        file.seek(max(0, os.path.getsize(path) - 2**16))
        tail = file.read()
    at = tail.rfind(b"OggS\0")
    return 0 <= at < len(tail) - 5 and not tail[at + 5] & 4


def _streamed(length: int, bits: int = 32) -> bool:
    """Whether a size is what programs write that do not know it yet, into a pipe: none, or about the most that a number holds."""
    return length == 0 or any(-(2**13) <= length - 2**b <= 0 for b in (bits - 1, bits))


def _wav_samples(file: BinaryIO, size: int) -> int:
    """Samples that the chunk of data promises, which libsndfile cuts down to what is there; 0 where that is unknown."""
    align = 0
    file.seek(12)
    while len(head := file.read(8)) == 8:
        name, length = head[:4], struct.unpack("<I", head[4:])[0]
        if name == b"data":
            return 0 if _streamed(length) or not align else length // align
        if name == b"fmt " and length >= 16:
            body = file.read(16)  # PCM, float, A-law, mu-law, extensible: blocks of one sample
            known = len(body) == 16 and body[:2] in (b"\x01\0", b"\x03\0", b"\x06\0", b"\x07\0", b"\xfe\xff")
            align = struct.unpack("<H", body[12:14])[0] if known else 0
            length -= 16
        file.seek(length + length % 2, os.SEEK_CUR)
        if file.tell() > size:
            return 0
    return 0
