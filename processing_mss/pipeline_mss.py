"""`pipeline("audio-source-separation")`: a song in, its stems out."""

import os
from collections.abc import Callable

import numpy as np
import torch
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import logging

from .audio_io_mss import read_audio

logger = logging.get_logger(__name__)

OUTPUTS = ("generated",)


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
        super().__init__(*args, windows_per_batch=batch_size or 16, **kwargs)
        if self.model.config.untrained:
            logger.warning(
                "The weights of this checkpoint are UNTRAINED (random): the stems will be noise, whatever the song. "
                "They show that everything works; pass `model=` for a trained checkpoint."
            )

    def __call__(self, inputs, batch_size: int | None = None, **kwargs):
        """Separate a song, or each of a list of songs.

        Args:
            inputs: path or URL (str), the bytes of a file, an array `(samples,)` or `(channels, samples)` (with
                `sampling_rate`), or a dictionary with `array` (or `raw`) and `sampling_rate`; or a list of these.
            sampling_rate (`int`, *optional*): of an array, in hertz (Hz); 48000 if not given.
            stems (`list[str]`, *optional*): those wanted, in this order; all if not given.
            output (`str`): `"generated"`, the codec's waveform: mono, at the input's rate and length.
            batch_size (`int`): windows that are generated at once; lower it if memory is short. 16 if not given.
            window_s (`float`), overlap (`float`): window in seconds and share of it that is cross-faded.
            do_sample, temperature, top_k, top_p, seed: see the model's `generate`. Draws are repeatable for one
                `batch_size`.
            progress_callback (`Callable[[int, int], None]`): called with (steps done, steps in all) of the song;
                an exception raised in it stops the separation.

        Returns:
            One dictionary per stem: `label`, `audio` (float32 `(channels, samples)`), `sampling_rate`. For a list of
            songs, a list of that.

        Raises:
            ValueError: input that cannot be read (`AudioReadError`) or is no audio, unknown stems or options.
        """
        if isinstance(inputs, list):
            return [self(song, batch_size=batch_size, **kwargs) for song in inputs]
        return super().__call__(inputs, windows_per_batch=batch_size, **kwargs)

    def _sanitize_parameters(
        self,
        sampling_rate: int | None = None,
        stems: list[str] | None = None,
        output: str | None = None,
        windows_per_batch: int | None = None,
        window_s: float | None = None,
        overlap: float | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        progress_callback: Callable[[int, int], None] | None = None,
    ):
        if isinstance(stems, str):
            stems = [stems]
        if output is not None and output not in OUTPUTS:
            raise ValueError(f"`output` must be one of {list(OUTPUTS)}, got {output!r}.")
        if stems is not None and (not stems or not set(stems) <= set(self.model.config.stems)):
            raise ValueError(f"`stems` must be some of {list(self.model.config.stems)}, got {stems}.")
        if windows_per_batch is not None and windows_per_batch < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {windows_per_batch}.")
        preprocess = {"sampling_rate": sampling_rate, "window_s": window_s, "overlap": overlap}
        forward = {
            "stems": stems,
            "windows_per_batch": windows_per_batch,
            "do_sample": do_sample,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "progress_callback": progress_callback,
        }
        return tuple({k: v for k, v in group.items() if v is not None} for group in (preprocess, forward, {}))

    def preprocess(self, inputs, sampling_rate=None, window_s=None, overlap=None):
        if isinstance(inputs, (str, os.PathLike, bytes)):
            waveform, rate = read_audio(inputs)
        elif isinstance(inputs, dict):
            waveform = inputs.get("array", inputs.get("raw"))
            rate = inputs.get("sampling_rate")
            if waveform is None or rate is None:
                raise ValueError(f"A dictionary needs `array` (or `raw`) and `sampling_rate`, got {sorted(inputs)}.")
        elif isinstance(inputs, (np.ndarray, torch.Tensor)):
            waveform, rate = inputs, sampling_rate
            if rate is None:
                rate = self.processor.sampling_rate
                logger.warning(f"No `sampling_rate` given with the array: {rate} Hz is assumed.")
        else:
            raise ValueError(f"Songs are paths, URLs, bytes, arrays or dictionaries, got {type(inputs).__name__}.")
        return dict(self.processor(waveform, rate, window_s=window_s, overlap=overlap))

    def _forward(
        self, model_inputs, windows_per_batch, stems=None, seed=None, progress_callback=None, **generate_options
    ):
        features_name = self.processor.feature_extractor.model_input_names[0]
        features = model_inputs.pop(features_name)
        batches = features.split(windows_per_batch)
        stems = list(stems or self.model.config.stems)
        windows = []
        for index, batch in enumerate(batches):

            def on_step(done, total, index=index):
                if progress_callback is not None:
                    progress_callback(index * total + done, len(batches) * total)

            # Every batch draws on its own, or windows at the same place of two batches would get the same noise.
            batch_seed = None if seed is None else seed + index
            codes = self.model.generate(
                **{features_name: batch}, stems=stems, seed=batch_seed, step_callback=on_step, **generate_options
            )
            windows.append(self.processor.batch_decode(codes, self.model.codec).float())
        return {"windows": torch.cat(windows), "stems": stems, **model_inputs}

    def postprocess(self, model_outputs):
        stems = model_outputs.pop("stems")
        song = self.processor.stitch(**model_outputs).cpu().numpy()
        rate = model_outputs["sampling_rate"]
        return [{"label": label, "audio": audio[None], "sampling_rate": rate} for label, audio in zip(stems, song)]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Write one self-contained repository: weights, configurations, processor and the code of all of them.

        The base class leaves out the processor, and the code of a pipeline that was itself loaded from a repository; it
        also writes the registry's default model into config.json.
        """
        os.makedirs(save_directory, exist_ok=True)
        custom_object_save(self, save_directory)  # beside this file the model names the pipeline in config.json
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
