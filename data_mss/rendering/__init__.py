"""Songs composed, sung, played and mixed here, with true stems; README.md says how one comes about, file by file."""

from .corpus import prepare_render
from .recipe import RenderConfig
from .song import render_song

__all__ = ["RenderConfig", "prepare_render", "render_song"]
