"""The one function that ``mmengine.hub.get_model('mmvim::…')`` expects under this name."""


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register the modules of mmvim, which importing the package has done.

    Args:
        init_default_scope (bool): Without effect: a config of ours names the library whose scope
            it belongs to.
    """
