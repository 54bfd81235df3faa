"""The separator in transformers' own terms: Auto classes, `generate`, `Trainer`, saving and loading again.

This package is not imported: a repository brings its code, and `trust_remote_code=True` runs it. Two repositories are
needed, of a separator and of the whole codec it was trained over. From the checkpoint that ships, in a clone of this
repository (`Trainer` needs accelerate, which `pip install -e ".[train]"` brings):

python - <<END
import mss_lm
from transformers import AutoFeatureExtractor, AutoModel, pipeline
pipeline("audio-source-separation").save_pretrained("runs/example/separator")
AutoModel.from_pretrained("pretrained_mss/codec").save_pretrained("runs/example/codec")
AutoFeatureExtractor.from_pretrained("pretrained_mss/codec").save_pretrained("runs/example/codec")
END
python examples/transformers_api.py --model runs/example/separator --codec runs/example/codec \\
    --output_dir runs/example/tuned

It separates a made-up song, trains ten steps on it, and prints the losses before and after.
"""

import argparse
import sys

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor, Trainer, TrainingArguments, pipeline

TRUST = {"trust_remote_code": True}


def made_up_stems(num_stems: int, seconds: float, rate: int) -> np.ndarray:
    """Tones and noise, one rhythm and pitch a stem; `(num_stems, samples)` float32."""
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal((num_stems, len(time)))
    stems = [
        0.1 * (np.sin(2 * np.pi * 110 * (index + 1) * time) + 0.3 * noise[index]) * (time * (index + 1) % 1 < 0.5)
        for index in range(num_stems)
    ]
    return np.stack(stems).astype(np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a separator's repository")
    parser.add_argument("--codec", required=True, help="folder or Hub id of the whole codec it was trained over")
    parser.add_argument("--output_dir", required=True, help="folder for the trained repository")
    arguments = parser.parse_args()

    processor = AutoProcessor.from_pretrained(arguments.model, **TRUST)
    model = AutoModel.from_pretrained(arguments.model, **TRUST)
    rate = processor.sampling_rate
    stems = made_up_stems(len(processor.stems), 2 * processor.window_s, rate)
    song = stems.sum(axis=0)
    plan = processor.plan(song, sampling_rate=rate)

    # Any rate, mono or (channels, samples): the processor mixes, resamples and cuts the song into windows.
    inputs = processor(song, sampling_rate=rate)
    codes = model.generate(**inputs, do_sample=False)  # (windows, stems, 2 x frames, codebooks)
    separated = processor.stitch(model.decode_codes(codes), plan)
    print(f"{len(codes)} windows, codes {tuple(codes.shape)}, stems {tuple(separated.shape)} at {rate} Hz")

    # Training wants windows of the mixture and the codes of their stems, at the level at which the model hears songs.
    codec = AutoModel.from_pretrained(arguments.codec, **TRUST)
    extractor = AutoFeatureExtractor.from_pretrained(arguments.codec)
    windows = (plan.gain * stems).reshape(len(stems), 2, plan.window).transpose(1, 0, 2)  # (2, stems, samples)
    crops = []
    for window in windows:
        waveforms = extractor(list(window), sampling_rate=rate, return_tensors="pt")
        codes = codec.encode(**waveforms).audio_codes  # (stems, 2 x frames, codebooks)
        features = processor.feature_extractor(window.sum(axis=0), sampling_rate=rate)
        crops.append({**{name: value[0] for name, value in features.items()}, "labels": codes})

    options = TrainingArguments(
        output_dir=arguments.output_dir,
        max_steps=10,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=options, train_dataset=crops, eval_dataset=crops)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"loss {before:.3f} before ten steps, {after:.3f} after")

    # A pipeline saves a whole repository: weights, configuration, processor and code.
    separate = pipeline("audio-source-separation", model=arguments.model, **TRUST)
    separate.model = model
    separate.save_pretrained(arguments.output_dir)
    inputs, model = inputs.to(model.device), model.eval()
    again = pipeline("audio-source-separation", model=arguments.output_dir, **TRUST).model.to(model.device)
    same = torch.equal(again.generate(**inputs, do_sample=False), model.generate(**inputs, do_sample=False))
    print(f"loaded again from {arguments.output_dir}: {'the same codes' if same else 'OTHER CODES'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
