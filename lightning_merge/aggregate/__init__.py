"""Aggregation of aligned weights: functions over state dicts and flat buffers.

Each name is imported when it is first used (they are listed in `__init__.pyi`): averaging files
needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
