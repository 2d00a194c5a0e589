"""Sounds whose pitch is known: sung speech, additive tones and noise, in frames for CREPE.

Speech comes from espeak-ng (its library in a wheel, `espeakng-loader`). Only its spectral envelope
is kept: harmonics of a pitch contour that is drawn here are summed under that envelope. So every
sample has a voice's timbre and a pitch that is known exactly.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
FRAME = 1_024
HOP = 160
"""Samples from one spectral envelope to the next."""

Array = NDArray[np.float64]

TRAINING = ("en", "en+f1", "en+f2", "en+m1", "en+m2", "en+m3", "en+Alex", "en+Annie", "en+klatt")
VALIDATION = ("en+f5", "en+m5", "en+Andy")
HELD_OUT = ("en+f4", "en+m7", "en+belinda", "en+croak", "en+Gene", "en+klatt4", "en+Storm")
TEXTS = (
    "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background.",
    "It is easy to tell the depth of a well. These days a chicken leg is a rare dish.",
    "Rice is often served in round bowls. The juice of lemons makes fine punch.",
    "The box was thrown beside the parked truck. The hogs were fed chopped corn and garbage.",
    "Four hours of steady work faced us. A large size in stockings is hard to sell.",
)
OTHER_TEXTS = (
    "The boy was there when the sun rose. A rod is used to catch pink salmon.",
    "The source of the huge river is the clear spring. Kick the ball straight and follow through.",
)

_RETRIEVAL = 1
_UTF8 = 1
_POSITION_OF_CHARACTERS = 1


@cache
def _espeak() -> tuple[ctypes.CDLL, int]:
    """The library, ready, and its sample rate."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    path = espeakng_loader.get_data_path().encode()
    return library, library.espeak_Initialize(_RETRIEVAL, 0, path, 0)


def spoken(text: str, voice: str) -> Array:
    """What a voice says, mono, at `RATE`."""
    library, rate = _espeak()
    parts: list[Array] = []
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )

    @kind
    def keep(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int) -> int:
        if count > 0:
            parts.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float64))
        return 0

    library.espeak_SetSynthCallback(keep)
    if library.espeak_SetVoiceByName(voice.encode()):
        raise ValueError(f"espeak-ng has no voice {voice!r}")
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, _POSITION_OF_CHARACTERS, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    sound = np.concatenate(parts) / 2**15
    at = np.arange(0, len(sound), rate / RATE)
    return np.interp(at, np.arange(len(sound)), sound)


def envelopes(sound: Array, order: int = 24) -> Array:
    """Smoothed log spectra of frames `HOP` apart, shape (frames, 513), by the real cepstrum."""
    window = np.hanning(FRAME)
    starts = range(0, len(sound) - FRAME, HOP)
    frames = np.stack([sound[start : start + FRAME] * window for start in starts])
    log = np.log(np.abs(np.fft.rfft(frames)) + 1e-4)
    cepstrum = np.fft.irfft(log)
    cepstrum[:, order : FRAME - order] = 0
    return np.fft.rfft(cepstrum).real


def contour(count: int, draw: np.random.Generator, low: float, high: float) -> Array:
    """Hz of every sample: glides between tones that are held, with vibrato now and then."""
    tones = np.exp(draw.uniform(np.log(low), np.log(high)) + 0.25 * draw.normal(size=64).cumsum())
    tones = np.clip(tones, low, high)
    steps = np.cumsum(draw.integers(RATE // 20, RATE // 3, size=64))
    pitch = np.exp(np.interp(np.arange(count), steps, np.log(tones)))
    if draw.random() < 0.5:
        time = np.arange(count) / RATE
        pitch *= 2 ** (draw.uniform(0.1, 0.6) / 12 * np.sin(2 * np.pi * draw.uniform(4, 7) * time))
    return pitch


def sung(envelope: Array, pitch: Array, draw: np.random.Generator) -> Array:
    """Harmonics of a pitch contour under spectral envelopes."""
    count = min(len(pitch), HOP * (len(envelope) - 1))
    pitch = pitch[:count]
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    place = np.arange(count) / HOP
    below = place.astype(int)
    share = place - below
    sound = np.zeros(count)
    for harmonic in range(1, int(0.45 * RATE / pitch.min()) + 1):
        frequency = harmonic * pitch
        bins = np.minimum(frequency / RATE * FRAME, FRAME / 2 - 1)
        log = (1 - share) * _level(envelope, below, bins) + share * _level(
            envelope, below + 1, bins
        )
        audible = frequency < 0.45 * RATE
        sound += audible * np.exp(log) * np.sin(harmonic * phase + draw.uniform(0, 2 * np.pi))
    return sound


def _level(envelope: Array, frames: NDArray[np.int64], bins: Array) -> Array:
    below = bins.astype(int)
    share = bins - below
    return (1 - share) * envelope[frames, below] + share * envelope[frames, below + 1]


def tone(pitch: Array, draw: np.random.Generator) -> Array:
    """A tone of some harmonics, as of an instrument."""
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    slope, count = draw.uniform(0.5, 2.5), int(draw.integers(1, 16))
    sound = np.zeros(len(pitch))
    for harmonic in range(1, count + 1):
        level = harmonic**-slope * draw.uniform(0.2, 1.0)
        audible = harmonic * pitch < 0.45 * RATE
        sound += audible * level * np.sin(harmonic * phase + draw.uniform(0, 2 * np.pi))
    return sound


@dataclass(frozen=True)
class Frames:
    """What CREPE sees and what it should say.

    ``sounds`` float32 (n, 1024), mean 0 and standard deviation 1; ``pitch`` Hz in the middle of
    each, float32 (n,).
    """

    sounds: NDArray[np.float32]
    pitch: NDArray[np.float32]


def frames(
    count: int, voices: Sequence[str], texts: Sequence[str], *, seed: int, speech: float = 0.7
) -> Frames:
    """Draw frames: a share of sung speech, and tones; with noise 10 to 40 dB below the sound."""
    draw = np.random.default_rng(seed)
    spectra = [envelopes(spoken(text, voice)) for voice in voices for text in texts]
    sounds: list[NDArray[np.float32]] = []
    pitches: list[float] = []
    while len(sounds) < count:
        if draw.random() < speech:
            envelope = spectra[draw.integers(len(spectra))]
            first = draw.integers(max(1, len(envelope) - 100))
            pitch = contour(RATE, draw, 70, 700)
            sound = sung(envelope[first : first + 100], pitch, draw)
        else:
            pitch = contour(RATE, draw, 45, 1_700)
            sound = tone(pitch, draw)
        for frame, middle in _cut(sound, draw):
            sounds.append(frame)
            pitches.append(pitch[middle])
    return Frames(np.stack(sounds[:count]), np.array(pitches[:count], np.float32))


def _cut(
    sound: Array, draw: np.random.Generator, each: int = 12
) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Yield noisy frames in which there is something to hear, and where their middles are."""
    loud = np.sqrt(np.mean(sound**2)) + 1e-9
    noisy = sound + loud * 10 ** (-draw.uniform(10, 40) / 20) * draw.normal(size=len(sound))
    for start in draw.integers(len(sound) - FRAME, size=each):
        if np.sqrt(np.mean(sound[start : start + FRAME] ** 2)) < 0.1 * loud:
            continue
        frame = noisy[start : start + FRAME]
        frame = (frame - frame.mean()) / max(frame.std(), 1e-10)
        yield frame.astype(np.float32), int(start) + FRAME // 2
