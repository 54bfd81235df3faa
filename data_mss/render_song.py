"""One rendered song: everything random is drawn from (seed, index), written down, and played into four stems."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from .render_choir import add_choir
from .render_composition import compose
from .render_credits import source_name, sources_heard
from .render_grooves import load_grooves, play_groove
from .render_instruments import SAMPLING_RATE, load_soundfont
from .render_production import (
    TONE_BANDS,
    Room,
    compression_gain,
    echo,
    equalize,
    impulse_response,
    loudness,
    pan,
    reverberate,
    saturate,
)
from .render_recipe import (
    Channel,
    Played,
    Recipe,
    RenderConfig,
    Sung,
    random_numbers,
    song_seconds,
)
from .render_samples import choose_pieces, load_bass, load_kit, play_bass, play_drums
from .render_score import Arrangement, Note, Part, find_midi, read_arrangement
from .render_singing import SingingStyle, analyse, harmonize, sing_melody
from .render_synthesizer import BassSynth, draw_bass_synth, ducking_gain, play_bass_synth
from .render_voices import find_audio, place_recorded, read_speech, speak

T = TypeVar("T")
STEMS = ("vocals", "drums", "bass", "other")
PEAK = 0.98  # of the loudest of the mixture and the stems
FADE = 0.3  # seconds at the end
SPEECH_SECONDS = 8.0  # that a singer is made of: some 30 syllables; at 48 kHz a second takes 0.15 s to analyse
MAN_PITCH = 60  # MIDI pitch: melodies that lie below it are a man's
MAN_SPEECH = 140  # hertz (Hz): lower speech is a man's
MAX_TRIES = 5  # files that may be broken or empty before a song is given up


def arrange(config: RenderConfig, index: int) -> Arrangement:
    """The song's notes: composed, or from a MIDI file of its split."""
    rng = random_numbers(config.seed, index, "score")
    duration, voice_low = song_seconds(config, index), int(rng.integers(45, 62))
    if config.midi_dir is None or rng.random() >= config.midi_share:
        return compose(duration, voice_low, rng)
    paths = config.files_for(find_midi(config.midi_dir), index)
    return first_usable(paths, lambda path: read_arrangement(path, duration, voice_low, rng), rng)


def first_usable(paths: list[Path], read: Callable[[Path], T], rng: np.random.Generator) -> T:
    """What `read` makes of the first of some files, in random order, that it accepts; others are warned about.

    Raises:
        ValueError: none of `MAX_TRIES` files is usable.
    """
    for path in [paths[number] for number in rng.permutation(len(paths))[:MAX_TRIES]]:
        try:
            return read(path)
        except ValueError as error:
            warnings.warn(f"Left out: {error}", stacklevel=2)
            reason = error
    raise ValueError(f"None of {min(len(paths), MAX_TRIES)} files like {path} is usable: {reason}")


def make_vocals(
    config: RenderConfig, index: int, arrangement: Arrangement, rng: np.random.Generator
) -> tuple[np.ndarray | None, Sung]:
    """The vocals `(2, T)` before production, None if the song has none, and what they are."""
    vocals, sung = make_lead(config, index, arrangement, rng)
    if config.choir_dir is None:
        return vocals, sung
    return add_choir(config, index, arrangement, vocals, sung, random_numbers(config.seed, index, "choir"))


def make_lead(
    config: RenderConfig, index: int, arrangement: Arrangement, rng: np.random.Generator
) -> tuple[np.ndarray | None, Sung]:
    """The vocals without a choir; see `make_vocals`."""
    can_speak = config.speech_dir is not None or shutil.which("espeak-ng") is not None
    can_sing = config.synthetic_vocals and can_speak and bool(arrangement.melody)
    has_recorded = config.vocals_dir is not None and bool(arrangement.sung)
    if rng.random() < config.instrumental_share or not (can_sing or has_recorded):
        return None, Sung()
    if has_recorded and (not can_sing or rng.random() < config.recorded_share):
        paths = config.files_for(find_audio(config.vocals_dir, vocals_only=True), index)
        path, (waveform, placed) = first_usable(
            paths, lambda path: (path, place_recorded(path, arrangement.sung, arrangement.duration, rng)), rng
        )
        return waveform, Sung("recorded", str(path), placed=placed)

    melody = arrangement.melody
    if config.speech_dir is not None:
        paths = config.files_for(find_audio(config.speech_dir, vocals_only=False), index)
        voice = first_usable(paths, lambda path: analyse(read_speech(path, paths, SPEECH_SECONDS, rng)), rng)
    else:
        voice = analyse(speak(24, rng))
    # Syllables in the order of the speech, now and then going back, as words of a refrain do.
    jumps = rng.random(len(melody)) < 0.05
    order = np.arange(len(melody)) + np.cumsum(jumps * rng.integers(0, len(voice.syllables), len(melody)))
    style = draw_style(voice.pitch, melody, rng)
    lead, pitch = sing_melody(voice, melody, arrangement.duration, style, order, rng)
    output, takes = np.stack((lead, lead)), [{"interval": 0, **asdict(style)}]
    intervals = []  # of the other takes, in degrees of the scale
    if rng.random() < config.doubling_share:
        intervals += [0] * int(rng.integers(1, 3))
    if rng.random() < config.harmony_share:
        intervals.append(int(rng.choice([2, 2, -2, -3, 5])))
    for number, interval in enumerate(intervals):
        second = replace(
            style,
            tuning=float(rng.normal(0, 0.06)),
            lateness=float(rng.uniform(0.005, 0.03)),
            formants=style.formants * float(rng.uniform(0.95, 1.05)),
            vibrato_rate=float(rng.uniform(4.8, 6.5)),
        )
        line = harmonize(melody, arrangement.scale, interval) if interval else melody
        take, _ = sing_melody(voice, line, arrangement.duration, second, order, rng)
        gain, side = float(rng.uniform(0.25, 0.6)), 0.8 * (-1) ** number
        output += gain * np.stack((take * (1 - max(side, 0)), take * (1 + min(side, 0))))
        takes.append({"interval": interval, "gain": gain, **asdict(second)})
    return output, Sung("sung", voice.description, [[*note[:3]] for note in melody], spans(pitch > 0), takes)


def formant_range(voice_pitch: float, melody: list[Note]) -> tuple[float, float]:
    """Factors on a speaker's formants that suit a melody: low melodies are sung by men, high ones by women.

    Args:
        voice_pitch: of the speech, in hertz (Hz); it tells a woman's voice from a man's.
    """
    is_man = np.median([note.pitch for note in melody]) < MAN_PITCH
    if voice_pitch < MAN_SPEECH:
        return (0.92, 1.05) if is_man else (1.1, 1.25)
    return (0.78, 0.9) if is_man else (0.95, 1.12)


def draw_style(voice_pitch: float, melody: list[Note], rng: np.random.Generator) -> SingingStyle:
    """How the song's singer sings; vibrato and drift together stay within a quarter tone."""
    return SingingStyle(
        vibrato_rate=float(rng.uniform(4.8, 6.5)),
        vibrato_depth=float(rng.uniform(0, 0.35)),
        glide=float(rng.uniform(0.03, 0.09)),
        scoop=float(rng.uniform(0, 1)),
        drift=float(rng.uniform(0.02, 0.06)),
        formants=float(rng.uniform(*formant_range(voice_pitch, melody))),
        breath=float(rng.uniform(0, 0.12)),
    )


def spans(active: np.ndarray, frame: float = 0.005) -> list[list[float]]:
    """[start, end] in seconds of runs of True, frames of `frame` seconds."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], active.astype(int), [0]))))
    return [[round(start * frame, 3), round(end * frame, 3)] for start, end in zip(edges[::2], edges[1::2])]


def draw_channel(stem: str, name: str, tempo: float, rng: np.random.Generator) -> Channel:
    """Production that suits a stem: bass and vocals in the middle, bass dark and dry, drums compressed."""
    central = stem in ("vocals", "drums", "bass")
    tone = rng.normal(0, 3, len(TONE_BANDS))
    if stem == "bass":
        tone = np.array([*rng.uniform(0, 3, 2), *-rng.uniform(0, 6, 3)])
    elif stem in ("vocals", "other"):
        tone[0] = -abs(tone[0]) - 6  # a high-pass, as every mix has it
    level = {"pad": -6, "comping": -2, "arpeggio": -5, "riff": -2, "solo": 1, "lead": 1}.get(name, 0)
    has_echo = stem != "bass" and stem != "drums" and rng.random() < 0.2
    return Channel(
        position=float(rng.normal(0, 0.05)) if central else float(rng.uniform(-0.8, 0.8)),
        width=float(rng.uniform(0, 0.3)) if stem == "bass" else float(rng.uniform(0.4, 1)),
        tone_db=np.clip(tone, -15, 9).round(2).tolist(),
        drive=float(rng.choice([0, 0, rng.uniform(0.3, 1)] if stem == "bass" else [0, 0, 0, rng.uniform(0.3, 2.5)])),
        ratio=float(rng.uniform(2, 6)) if central and rng.random() < 0.8 else 1.0,
        echo_seconds=60 / max(tempo, 40) * float(rng.choice([0.5, 0.75, 1])) if has_echo else 0.0,
        send=0.0 if stem == "bass" else float(rng.choice([0, rng.uniform(0.03, 0.15), rng.uniform(0.1, 0.4)])),
        level_db=level + float(rng.uniform(-3, 3)),
    )


def produce(waveform: np.ndarray, channel: Channel) -> np.ndarray:
    """A part after its channel: all parts come out equally loud but for the channel's level."""
    waveform = equalize(waveform, channel.tone_db)
    waveform = saturate(waveform, channel.drive)
    if channel.ratio > 1:
        waveform = waveform * compression_gain(waveform, -12, channel.ratio, 0.15)
    if channel.echo_seconds > 0:
        waveform = echo(waveform, channel.echo_seconds, 0.4, 0.35)
    active = waveform[np.abs(waveform) > 0.01 * np.abs(waveform).max()]
    rms = np.sqrt(np.mean(active**2)) if active.size else 1.0
    return pan(waveform * (10 ** (channel.level_db / 20) * 0.1 / rms), channel.position, channel.width)


def with_groove(config: RenderConfig, index: int, arrangement: Arrangement) -> tuple[list[Part], str]:
    """The song's parts, their drums played by a person if the song is one of those, and by which performance."""
    rng = random_numbers(config.seed, index, "groove")
    if config.grooves_dir is not None and rng.random() < config.groove_share:
        played = play_groove(arrangement, load_grooves(config.grooves_dir), config.split_of(index), rng)
        if played is not None:
            return played
    return list(arrangement.parts), ""


def draw_samplers(config: RenderConfig, has_synth: bool, rng: np.random.Generator) -> dict[str, str]:
    """Folders of samples that play the song's drums and bass, by stem; a stem that is not there has no such player."""
    samplers = {}
    if config.drums_dirs and rng.random() < config.sampled_drums_share:
        samplers["drums"] = str(rng.choice(config.drums_dirs))
    if config.bass_dirs and not has_synth and rng.random() < config.sampled_bass_share:
        samplers["bass"] = str(rng.choice(config.bass_dirs))
    return samplers


def play(part: Part, player: str, synth: BassSynth | None, duration: float, rng: np.random.Generator) -> np.ndarray:
    """A part `(2, duration * 48000)` before production, by a synthesizer, a folder of samples, or a soundfont."""
    if synth is not None:
        return play_bass_synth(part.notes, synth, duration)
    if not Path(player).is_dir():
        return load_soundfont(player).play(part, duration)
    if part.is_drum:
        return play_drums(part.notes, choose_pieces(load_kit(player), rng), duration, rng)
    return play_bass(part.notes, load_bass(player), duration, rng)


def render_song(config: RenderConfig, index: int) -> tuple[dict[str, np.ndarray], Recipe]:
    """Song `index` of a corpus; depends on nothing but the configuration, the files it names, and the index.

    Returns:
        stems "vocals", "drums", "bass", "other", each `(2, T)` float32 at 48 kHz, which sum to the mixture; the recipe.
    """
    arrangement = arrange(config, index)
    duration = arrangement.duration
    vocals, sung = make_vocals(config, index, arrangement, random_numbers(config.seed, index, "vocals"))

    rng = random_numbers(config.seed, index, "instruments")
    parts, groove = with_groove(config, index, arrangement)
    # An instrument plays the melody where nobody sings it, and sometimes along with the singer.
    if arrangement.lead is not None and arrangement.lead.notes and (sung.kind != "sung" or rng.random() < 0.1):
        parts.append(arrangement.lead)
    soundfonts = [str(rng.choice(config.soundfonts)) for _ in parts]

    rng = random_numbers(config.seed, index, "synthesizer")
    synth = draw_bass_synth(rng) if rng.random() < config.synthesizer_share else None

    samples_rng = random_numbers(config.seed, index, "samples")
    samplers = draw_samplers(config, synth is not None, samples_rng)

    rng = random_numbers(config.seed, index, "production")
    room = Room(float(rng.uniform(0.3, 3)), float(rng.uniform(0.005, 0.04)), float(rng.uniform(0, 1)))
    tracks, played = [], []
    for part, soundfont in zip(parts, soundfonts):
        channel = draw_channel(part.stem, part.name, arrangement.tempo, rng)
        player, own_synth = samplers.get(part.stem, soundfont), synth if part.stem == "bass" else None
        waveform = produce(play(part, player, own_synth, duration, samples_rng), channel)
        if own_synth is not None:
            kicks = [note for drums in parts if drums.is_drum for note in drums.notes]
            waveform = waveform * ducking_gain(kicks, own_synth, waveform.shape[1])
        tracks.append((part.stem, waveform, channel))
        name = "synthesizer" if own_synth is not None else source_name(player)
        own_groove = groove if part.is_drum else ""
        played.append(Played(part.name, part.stem, part.program, len(part.notes), name, channel, own_synth, own_groove))
    if vocals is not None:
        sung.channel = draw_channel("vocals", "vocals", arrangement.tempo, rng)
        tracks.append(("vocals", produce(vocals, sung.channel), sung.channel))

    stems = mix_stems(tracks, round(duration * SAMPLING_RATE), impulse_response(room, rng))
    levels = {"vocals": rng.normal(-16, 2), "drums": rng.normal(-18, 2.5), "bass": rng.normal(-20, 2.5)}
    levels["other"] = rng.normal(-18.5, 2.5)
    bus_ratio, target = float(rng.uniform(1, 3)), float(rng.uniform(-20, -10))
    master(stems, levels, bus_ratio, target)
    return stems, Recipe(
        seed=config.seed,
        index=index,
        split=config.split_of(index),
        duration=duration,
        sampling_rate=SAMPLING_RATE,
        source=arrangement.source,
        tempo=arrangement.tempo,
        metre=arrangement.metre,
        key=arrangement.key,
        parts=played,
        vocals=sung,
        room=room,
        levels_lufs={stem: float(level) for stem, level in levels.items()},
        bus_ratio=bus_ratio,
        loudness_lufs=target,
        sources=sources_heard(config, arrangement.source, played, sung),
    )


def mix_stems(
    tracks: list[tuple[str, np.ndarray, Channel]], length: int, response: np.ndarray
) -> dict[str, np.ndarray]:
    """Tracks added up to stems, each stem with its own share of the room."""
    stems = {stem: np.zeros((2, length), dtype=np.float32) for stem in STEMS}
    sends = {}
    for stem, waveform, channel in tracks:
        stems[stem] += waveform
        if channel.send > 0:
            sends[stem] = sends.get(stem, 0) + channel.send * waveform
    for stem, send in sends.items():
        stems[stem] += reverberate(send, response)
    return stems


def master(stems: dict[str, np.ndarray], levels: dict[str, float], bus_ratio: float, target: float):
    """Balance the stems by loudness (LUFS), compress and fade them with one common gain, and scale them together, in
    place: the mixture reaches the target loudness unless a peak would pass `PEAK`."""
    for stem, waveform in stems.items():
        measured = loudness(waveform)
        if np.isfinite(measured):
            waveform *= 10 ** ((levels[stem] - measured) / 20)
    mixture = sum(stems.values())
    gain = compression_gain(mixture, -9, bus_ratio, 0.2)
    fade = min(round(FADE * SAMPLING_RATE), len(gain))
    gain[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    mixture *= gain
    for waveform in stems.values():
        waveform *= gain
    peak = max(np.abs(waveform).max() for waveform in (mixture, *stems.values()))
    measured = loudness(mixture)
    scale = PEAK / max(peak, 1e-9)
    if np.isfinite(measured):
        scale = min(scale, 10 ** ((target - measured) / 20))
    for waveform in stems.values():
        waveform *= np.float32(scale)
