"""`pipeline("audio-source-separation")`: a song in, its stems out."""

import json
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import logging

from .audio_reader_mss import AudioReader, damage_message
from .options_mss import SeparationOptions
from .separation_mss import StemStream, separate_songs
from .song_queue_mss import Song

logger = logging.get_logger(__name__)

UPLOAD_OPTIONS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


class AudioSourceSeparationPipeline(Pipeline):
    r"""
    Separate songs into stems.

    ```python
    >>> import mss_lm
    >>> from transformers import pipeline

    >>> separate = pipeline("audio-source-separation")
    >>> separate("song.mp3", stems=["vocals"])
    [{'label': 'vocals', 'audio': array([[...]], dtype=float32), 'sampling_rate': 44100}]
    ```

    The parameters of a call can also be given to `pipeline(...)` as defaults.
    """

    _load_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, *args, batch_size: int | None = None, **kwargs):
        # The base class would count songs; windows are what this pipeline batches.
        super().__init__(*args, windows_per_batch=batch_size, **kwargs)
        self.processor.check_model(self.model.config)
        SeparationOptions(**self._forward_params).check(self.model, self.processor)
        if self.model.config.untrained:
            logger.warning(
                "The weights of this checkpoint are UNTRAINED (random): the stems will be noise, whatever the song. "
                "They show that everything works; pass `model=` for a trained checkpoint."
            )

    def __call__(self, inputs, batch_size: int | None = None, **kwargs):
        """Separate a song, or each of a list of songs.

        Args:
            inputs: path or URL (str), the bytes of a file, an `AudioReader` (which can limit what it reads), an array
                `(samples,)` or `(channels, samples)` (with `sampling_rate`), or a dictionary with `array` (or `raw`)
                and `sampling_rate`; or a list of these, which share batches. What a damaged file has lost is silent,
                and a warning tells it.
            sampling_rate (`int`, *optional*): of an array, in hertz (Hz); 48000 if not given.
            stems (`list[str]`, *optional*): those wanted, in this order; all if not given. Where tokens are written,
                vocals come first: alone they take a quarter of the steps.
            two_stems (`str`, *optional*): this stem and all the rest, e.g. "vocals" and "no_vocals".
            output (`str`, *optional*): `"masked"`, the mixture's own sound, divided among the stems by the encoder's
                masks: all channels, sample-aligned; all stems add up to the mixture; no tokens are written, which takes
                seconds for a song. `"filtered"`, the same with the power of what the language model generates taken
                into account. `"generated"`, the codec's waveform: mono. All at the input's rate and length. If not
                given, what the checkpoint does best (`outputs` of its configuration).
            window_s (`float`), overlap (`float`): window in seconds and share of it that is cross-faded.
            batch_size (`int`, *optional*): windows that are generated at once; if not given, as many as fit into a
                GPU's free memory, 32 on CPUs, 4 for `"masked"`. It is halved when memory runs out.
            num_candidates (`int`, *optional*): sample so many candidates of every window, which take as many times the
                memory; the filter goes by their mean power, so for `"filtered"` only. If not given, as many as the
                model's configuration says. Implies `do_sample` (with top_p=0.9, unless the call or the model limits
                sampling in another way).
            do_sample, temperature, top_k, top_p: see the model's `generate`.
            seed (`int`): makes sampling repeatable; what a window gets depends on its place in the song, not on
                `batch_size`.
            num_codebooks (`int`): decode the first layers of codes only.
            expected (`bool`, *optional*): let the filter use the average of what the model holds possible, in place of
                what it chose. For `"filtered"` only, with all codebooks; True there, if not given.
            clip_mode (`str`): `"none"` leaves samples beyond full scale as they are, `"rescale"` makes the whole song
                quieter if there are any, `"clamp"` cuts them.
            progress_callback (`Callable[[int, int], None]`): called with (steps done, steps in all) of the song, of
                which every window has its share (404 for four stems of 4 s, 1 for `"masked"`); an exception raised in
                it stops the separation. Steps done go back when a batch has to be repeated in halves. Of a list, it
                is told of the song whose stems are waited for; the next ones may be half done when their turn comes.

        Returns:
            One dictionary per stem: `label`, `audio` (float32 `(channels, samples)`), `sampling_rate`. For a list of
            songs, a list of that.

        Raises:
            ValueError: input that cannot be read (`AudioReadError`) or is no audio, unknown stems or options.
            RuntimeError: a single window does not fit into memory.
        """
        if isinstance(inputs, list):
            streams = self.stream_songs(inputs, batch_size=batch_size, **kwargs)
            return [self.postprocess(self._collect(stream)) for stream in streams]
        return super().__call__(inputs, windows_per_batch=batch_size, **kwargs)

    def stream(self, inputs, batch_size: int | None = None, **kwargs) -> StemStream:
        """Separate one song and give its stems block by block, as they are ready; the arguments are those of a call.

        A file of up to ten minutes is decoded once and kept. A longer one is decoded block by block, four times, in
        memory that does not grow: for its length, its level, its windows, and to cut stems out of it. With
        clip_mode="rescale" nothing comes before the whole song is separated, since its loudest sample must be known.
        """
        return next(self.stream_songs([inputs], batch_size=batch_size, **kwargs))

    def stream_songs(self, inputs: Iterable, batch_size: int | None = None, **kwargs) -> Iterator[StemStream]:
        """`stream` of each of several songs, which share batches: take the stems of one before those of the next.

        A song is taken from `inputs` when a batch has room for its windows, maybe before the one ahead of it is done.
        An error in a song is raised where its stems are taken, and the next one can be separated nevertheless; not so
        if reading `inputs` raises one, as files do that are opened there.
        """
        preprocess, forward, _ = self._sanitize_parameters(windows_per_batch=batch_size, **kwargs)
        preprocess = {**self._preprocess_params, **preprocess}
        songs = (self.preprocess(song, **preprocess)["song"] for song in inputs)
        options = SeparationOptions(**{**self._forward_params, **forward})
        return separate_songs(songs, self.model, self.processor, options)

    def _sanitize_parameters(
        self,
        sampling_rate: int | None = None,
        stems: list[str] | None = None,
        two_stems: str | None = None,
        output: str | None = None,
        window_s: float | None = None,
        overlap: float | None = None,
        windows_per_batch: int | None = None,
        num_candidates: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        num_codebooks: int | None = None,
        expected: bool | None = None,
        clip_mode: str | None = None,
        progress_callback: Callable[[int, int], None] | None = None,
    ):
        forward = {
            "stems": [stems] if isinstance(stems, str) else stems,
            "two_stems": two_stems,
            "output": output,
            "window_s": window_s,
            "overlap": overlap,
            "batch_size": windows_per_batch,
            "num_candidates": num_candidates,
            "do_sample": do_sample,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "num_codebooks": num_codebooks,
            "expected": expected,
            "clip_mode": clip_mode,
            "progress_callback": progress_callback,
        }
        given = {name: value for name, value in forward.items() if value is not None}
        return {} if sampling_rate is None else {"sampling_rate": sampling_rate}, given, {}

    def preprocess(self, inputs, sampling_rate=None):
        if isinstance(inputs, AudioReader):
            return {"song": Song.from_reader(inputs)}
        if isinstance(inputs, (str, os.PathLike, bytes)):
            reader = AudioReader(inputs)
            if reader.losses:
                logger.warning(damage_message(reader.name, reader.losses))
            return {"song": Song.from_reader(reader)}
        if isinstance(inputs, dict):
            waveform = inputs.get("array", inputs.get("raw"))
            rate = inputs.get("sampling_rate")
            if waveform is None or rate is None:
                raise ValueError(
                    f"A dictionary needs `array` (or `raw`) and `sampling_rate`, got {sorted(map(str, inputs))}."
                )
        elif isinstance(inputs, (np.ndarray, torch.Tensor)):
            waveform, rate = inputs, sampling_rate
            if rate is None:
                rate = self.processor.sampling_rate
                logger.warning(f"No `sampling_rate` given with the array: {rate} Hz is assumed.")
        else:
            raise ValueError(
                f"Songs are paths, URLs, bytes, readers, arrays or dictionaries, got {type(inputs).__name__}."
            )
        return {"song": Song.from_array(waveform, rate)}

    def _forward(self, model_inputs, **options):
        songs, options = [model_inputs["song"]], SeparationOptions(**options)
        return self._collect(next(separate_songs(songs, self.model, self.processor, options)))

    @staticmethod
    def _collect(stream: StemStream) -> dict:
        """All blocks of a song as one array for each stem."""
        shape, position = (stream.num_channels, stream.num_samples), 0
        stems = {label: np.empty(shape, dtype=np.float32) for label in stream.labels}
        for block in stream:
            for label, samples in block.items():
                end = position + samples.shape[1]
                stems[label][:, position:end] = samples
            position = end
        return {"stems": stems, "sampling_rate": stream.sampling_rate}

    def postprocess(self, model_outputs):
        rate = model_outputs["sampling_rate"]
        return [
            {"label": label, "audio": audio, "sampling_rate": rate} for label, audio in model_outputs["stems"].items()
        ]

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, repo_id: str | None = None, **kwargs
    ):
        """Write one self-contained repository: weights, configurations, processor and the code of all of them.

        Args:
            push_to_hub: upload all of it too, as the method `push_to_hub` does, which other arguments of its are for.
            repo_id: where to, "org/name"; the name of the folder, if not given.

        The base class leaves out the processor, and the code of a pipeline that was itself loaded from a repository; it
        also writes the registry's default model into config.json.
        """
        upload_options = {name: kwargs.pop(name) for name in UPLOAD_OPTIONS if name in kwargs}
        os.makedirs(save_directory, exist_ok=True)
        custom_object_save(self, save_directory)
        self.model.save_pretrained(save_directory, **kwargs)
        # The configuration of a model knows of no pipeline; that of a repository names the file that lies beside it.
        path = os.path.join(save_directory, "config.json")
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
        module, name = type(self).__module__.rpartition(".")[2], type(self).__name__
        implementation = {"impl": f"{module}.{name}", "pt": ["AutoModel"], "type": "audio"}
        values["custom_pipelines"] = {"audio-source-separation": implementation}
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(values, indent=2, sort_keys=True) + "\n")
        self.processor.save_pretrained(save_directory)
        if push_to_hub:  # not the model's own, which would upload it alone
            self.push_to_hub(repo_id or os.path.basename(os.path.abspath(save_directory)), **upload_options)
