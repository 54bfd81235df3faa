"""From recordings to training crops.

    musdb18.py, stem_folders.py, labelling/, rendering/  ->  manifest.py  ->  dataset.py  ->  augmentation.py

Audio in, `(stems, samples)` out; nothing here knows about models.
"""
