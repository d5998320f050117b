"""One object that is both a wrapper of ours and the LightningModule that it wraps.

A wrapper that holds the user's module as an attribute loses its hooks, its `self.log`, its
hyper-parameters and the names of its weights. So the wrapper becomes an instance of a
class derived from both, and takes over the module's state whole.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule

_CLASSES: dict[tuple[Any, Any], type[LightningModule]] = {}


def adopt(wrapper: LightningModule, module: LightningModule) -> None:
    """Makes `wrapper` an instance of its own class and of `type(module)`, in that order.

    The two then share one state: what is set on either is seen by both, so that bound
    methods and callbacks that the module handed out stay valid.

    `LightningModule.__init__` has not been called on the wrapper.
    """
    wrapper.__class__ = adopted_class(type(wrapper), type(module))
    object.__setattr__(wrapper, "__dict__", module.__dict__)
    _keep_own_hyper_parameters(wrapper)


def adopted_class(
    wrapper: type[LightningModule], user: type[LightningModule]
) -> type[LightningModule]:
    """The class derived from a wrapper class and a user's class; one for each pair.

    The wrapper's `_passes_on` names the steps that hand their arguments on to the user's.
    """
    if (wrapper, user) in _CLASSES:
        return _CLASSES[wrapper, user]

    def reduce(self: LightningModule, protocol: Any) -> tuple[Any, ...]:
        del protocol
        return _rebuild, (wrapper, user), self.__getstate__()

    members = {"__reduce_ex__": reduce, "__module__": wrapper.__module__, "__doc__": user.__doc__}
    for name in getattr(wrapper, "_passes_on", ()):
        members[name] = _as_declared(getattr(wrapper, name), getattr(user, name))
    made = type(f"{wrapper.__name__}[{user.__name__}]", (wrapper, user), members)
    _CLASSES[wrapper, user] = made
    return made


def _as_declared(step: Callable[..., Any], declared: Callable[..., Any]) -> Callable[..., Any]:
    # Lightning reads in the declaration whether a step wants the batch's number.
    @functools.wraps(declared)
    def call(self: LightningModule, *args: Any, **kwargs: Any) -> Any:
        return step(self, *args, **kwargs)

    # It looks behind one decorator, and the module may have one of its own.
    call.__wrapped__ = getattr(declared, "__wrapped__", declared)
    return call


def _rebuild(wrapper: type[LightningModule], user: type[LightningModule]) -> LightningModule:
    cls = adopted_class(wrapper, user)
    return cls.__new__(cls)


def _keep_own_hyper_parameters(wrapper: LightningModule) -> None:
    # LightningCLI hands the *outer* module's configuration to every module that is built
    # inside it; the user's class could not be loaded from a checkpoint that says so.
    saved = dict(wrapper.hparams)
    outer = saved.get("_class_path")
    inner = saved.get("module")
    if outer is None or not isinstance(inner, dict) or "class_path" not in inner:
        return
    own = {"_class_path": inner["class_path"], **inner.get("init_args", {})}
    own["_instantiator"] = saved.get("_instantiator")
    wrapper._hparams.clear()
    wrapper._hparams.update(own)
    object.__setattr__(wrapper, "_hparams_initial", copy.deepcopy(wrapper._hparams))
