"""Views: exact augmented renderings of samples."""

from kdpipe.views.draws import CROPS, FIVE_CROP, View
from kdpipe.views.erasing import Erased
from kdpipe.views.normalize import Normalize
from kdpipe.views.policy import ViewsConfig
from kdpipe.views.render import BlockViews, render_view

__all__ = ["CROPS", "FIVE_CROP", "BlockViews", "Erased", "Normalize", "View", "ViewsConfig", "render_view"]
