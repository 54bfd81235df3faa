"""One rendered song: everything random is drawn from (seed, index), written down, and played into four stems."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from .choir import add_choir
from .composition import compose
from .credits import source_name, sources_heard
from .drum_synth import synthesize_kit
from .grooves import load_grooves, play_groove
from .instruments import BassSynth, draw_bass_synth, ducking_gain, load_soundfont, play_bass_synth
from .midi import find_midi, read_arrangement
from .production import Room, draw_channel, impulse_response, master, mix_stems, produce
from .recipe import SYNTHESIZER, Played, Recipe, RenderConfig, Sung, random_numbers, song_seconds
from .samples import choose_pieces, load_bass, load_kit, play_bass, play_drums
from .score import SAMPLING_RATE, Arrangement, Note, Part, harmonize
from .singing import FRAME, SingingStyle, analyse, sing_melody
from .synth import Sound, draw_sound, play_synth
from .voices import find_audio, place_recorded, read_speech, runs, speak

T = TypeVar("T")
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
    voiced = [[round(start * FRAME, 3), round(end * FRAME, 3)] for start, end in runs(pitch > 0)]
    return output, Sung("sung", voice.description, [[*note[:3]] for note in melody], voiced, takes)


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


def with_groove(config: RenderConfig, index: int, arrangement: Arrangement) -> tuple[list[Part], str]:
    """The song's parts, their drums played by a person if the song is one of those, and by which performance."""
    rng = random_numbers(config.seed, index, "groove")
    if config.grooves_dir is not None and rng.random() < config.groove_share:
        played = play_groove(arrangement, load_grooves(config.grooves_dir), config.split_of(index), rng)
        if played is not None:
            return played
    return list(arrangement.parts), ""


def choose_players(
    config: RenderConfig, index: int, parts: list[Part], rng: np.random.Generator, samples_rng: np.random.Generator
) -> list[str | BassSynth | Sound]:
    """What plays each part: a soundfont's file, a folder of samples, or a synthesizer (`SYNTHESIZER` for drums).

    Args:
        rng: of soundfonts.
        samples_rng: of folders of samples.
    """
    soundfonts = [str(rng.choice(config.soundfonts)) for _ in parts]
    of_stem: dict[str, str | BassSynth] = {}
    if config.drums_dirs and samples_rng.random() < config.sampled_drums_share:
        of_stem["drums"] = str(samples_rng.choice(config.drums_dirs))
    synth_rng = random_numbers(config.seed, index, "synthesizer")
    if synth_rng.random() < config.synthesizer_share:
        of_stem["bass"] = draw_bass_synth(synth_rng)
    elif config.bass_dirs and samples_rng.random() < config.sampled_bass_share:
        of_stem["bass"] = str(samples_rng.choice(config.bass_dirs))
    sound_rng = random_numbers(config.seed, index, "sound")
    players = [of_stem.get(part.stem, soundfont) for part, soundfont in zip(parts, soundfonts)]
    return [
        draw_sound(sound_rng) if player == SYNTHESIZER and not part.is_drum else player
        for part, player in zip(parts, players)
    ]


def play(part: Part, player: str | BassSynth | Sound, duration: float, rng: np.random.Generator) -> np.ndarray:
    """A part `(2, duration * 48000)` before production, by one of `choose_players`."""
    if isinstance(player, BassSynth):
        return play_bass_synth(part.notes, player, duration)
    if isinstance(player, Sound):
        return play_synth(part.notes, player, duration, rng)
    if player == SYNTHESIZER:
        return play_drums(part.notes, synthesize_kit(rng), duration, rng)
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
    rng, samples_rng = (random_numbers(config.seed, index, topic) for topic in ("instruments", "samples"))
    parts, groove = with_groove(config, index, arrangement)
    # An instrument plays the melody where nobody sings it, and sometimes along with the singer.
    if arrangement.lead is not None and arrangement.lead.notes and (sung.kind != "sung" or rng.random() < 0.1):
        parts.append(arrangement.lead)
    players = choose_players(config, index, parts, rng, samples_rng)

    rng = random_numbers(config.seed, index, "production")
    room = Room(float(rng.uniform(0.3, 3)), float(rng.uniform(0.005, 0.04)), float(rng.uniform(0, 1)))
    kicks = [note for part in parts if part.is_drum for note in part.notes]
    tracks, played = [], []
    for part, player in zip(parts, players):
        channel = draw_channel(part.stem, part.name, arrangement.tempo, rng)
        waveform = produce(play(part, player, duration, samples_rng), channel)
        synth = None if isinstance(player, str) else player
        if isinstance(synth, BassSynth):
            waveform = waveform * ducking_gain(kicks, synth, waveform.shape[1])
        tracks.append((part.stem, waveform, channel))
        name = source_name(player) if synth is None else SYNTHESIZER
        own_groove = groove if part.is_drum else ""
        played.append(Played(part.name, part.stem, part.program, len(part.notes), name, channel, synth, own_groove))
    if vocals is not None:
        sung.channel = draw_channel("vocals", "vocals", arrangement.tempo, rng)
        tracks.append(("vocals", produce(vocals, sung.channel), sung.channel))

    stems = mix_stems(tracks, round(duration * SAMPLING_RATE), impulse_response(room, rng))
    means = {"vocals": (-16, 2), "drums": (-18, 2.5), "bass": (-20, 2.5), "other": (-18.5, 2.5)}
    levels = {stem: float(rng.normal(mean, deviation)) for stem, (mean, deviation) in means.items()}
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
        levels_lufs=levels,
        bus_ratio=bus_ratio,
        loudness_lufs=target,
        sources=sources_heard(config, arrangement.source, played, sung),
    )
