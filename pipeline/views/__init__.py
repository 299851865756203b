"""Views: exact augmented renderings of samples."""

from pipeline.views.draws import CROPS, FIVE_CROP, View
from pipeline.views.erasing import Erased
from pipeline.views.normalize import Normalize
from pipeline.views.policy import ViewsConfig
from pipeline.views.render import BlockViews, render_view

__all__ = ["CROPS", "FIVE_CROP", "BlockViews", "Erased", "Normalize", "View", "ViewsConfig", "render_view"]
