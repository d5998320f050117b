"""lightning_merge: train, align and merge image classifiers.

Every public name is importable from here; what it needs is imported when it is first used. The
names, and their types, are those of `__init__.pyi` beside this file.
"""

import lazy_loader

import lightning_merge.moved_names  # noqa: F401  # makes the import system find them

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
