"""Views: exact augmented renderings of samples."""

from typing import TYPE_CHECKING

from kdpipe._util.lazy import exports

if TYPE_CHECKING:
    from kdpipe.views.draws import CROPS, FIVE_CROP, View
    from kdpipe.views.erasing import Erased
    from kdpipe.views.normalize import Normalize
    from kdpipe.views.policy import ViewsConfig
    from kdpipe.views.render import BlockViews, render_view
else:
    __getattr__ = exports(
        __name__,
        {
            "draws": "CROPS FIVE_CROP View",
            "erasing": "Erased",
            "normalize": "Normalize",
            "policy": "ViewsConfig",
            "render": "BlockViews render_view",
        },
    )
