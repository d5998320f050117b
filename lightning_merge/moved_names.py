"""Modules of earlier versions that saved configurations, checkpoints and scripts still name.

`lightning_merge.study.aggregates.learned.NPMerge` still works although that module was removed:
importing it gives a module with the public names of the package that has its classes now.
"""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = __name__.rpartition(".")[0]

# Where the classes are public now, and the modules that had them; both relative to this package.
_HOMES = {
    "align": "align.activation align.cca align.group align.many align.weight",
    "callbacks": "callbacks.alphas callbacks.batchnorm callbacks.freeze callbacks.greedy "
    "callbacks.progress",
    "data": "data.celeba data.chest_xray data.cifar data.digits data.folders data.handwritten "
    "data.huggingface data.medmnist data.tiny_imagenet data.vision_tasks",
    "modules": "modules.ada_merging modules.merge modules.successive",
    "recipe.aggregates": "study.aggregates study.aggregates.ada_merging study.aggregates.average "
    "study.aggregates.by_data study.aggregates.ensembles study.aggregates.greedy "
    "study.aggregates.learned study.aggregates.model_stock study.aggregates.task_vectors",
    "recipe.selections": "study.select",
}
_HOME = {
    f"{_PACKAGE}.{module}": f"{_PACKAGE}.{home}"
    for home, modules in _HOMES.items()
    for module in modules.split()
}


class _MovedModules(MetaPathFinder, Loader):
    """Imports a removed module as a stand-in for the package that has its classes now."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        # As a package, so that submodules are not searched for in the current package's folder.
        return ModuleSpec(fullname, self, is_package=True) if fullname in _HOME else None

    def exec_module(self, module: ModuleType) -> None:
        home = import_module(_HOME[module.__name__])
        module.__dict__["__getattr__"] = partial(getattr, home)


# Last, so that an existing module is never taken for a removed one.
sys.meta_path.append(_MovedModules())
