"""Views: exact augmented renderings of samples."""

from pipeline.views.draws import View
from pipeline.views.normalize import Normalize
from pipeline.views.policy import ViewsConfig
from pipeline.views.render import BlockViews, render_view

__all__ = ["BlockViews", "Normalize", "View", "ViewsConfig", "render_view"]
