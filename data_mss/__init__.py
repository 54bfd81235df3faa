"""From recordings to training crops.

    musdb18.py, stem_folders.py, pseudo_labels.py, render*.py  ->  manifest.py  ->  dataset.py  ->  augmentation.py
    (equaliser.py, reverberation.py, mix_bus.py, lossy_mixture.py)

Audio in, `(stems, samples)` out; nothing here knows about models.
"""
