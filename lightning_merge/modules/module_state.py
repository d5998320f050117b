"""The tensors of a module's state dict, read and written as the module itself wants them.

A module may keep a part out of its files (`strict_loading = False`: a frozen teacher, an encoder
that is downloaded), and may have extra state that is no tensor.
"""

from collections.abc import Mapping
from itertools import chain

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_merge.checkpoint import StateDict, fit_names, prefixed, tensors_of


def fit_module(state: Mapping[str, Tensor], module: LightningModule, name: str) -> StateDict:
    """Gives a state dict the names of a module, which it has, or those of one part of it.

    What only one of them has is left out where the module is not strict; `name` is what to call the
    state in an error.
    """
    expected, state = tensors_of(module), tensors_of(state)
    if not module.strict_loading:
        common = {key: state[key] for key in expected if key in state}
        if common:
            return fit_names(common, {key: expected[key] for key in common}, name)
    return fit_names(state, expected, name)


def build(module: LightningModule, state: Mapping[str, object]) -> None:
    """Has a module build what its files hold and it lacks (`configure_model`)."""
    if not state.keys() <= module.state_dict().keys():
        module.configure_model()


def shape_lazy_layers(module: LightningModule, state: Mapping[str, Tensor]) -> None:
    """Gives layers that have not run yet the shapes that they have in a module's files."""
    if any(map(is_lazy, chain(module.parameters(), module.buffers()))):
        module.load_state_dict(prefixed(state, module.state_dict()), strict=False)


def load(module: LightningModule, state: Mapping[str, object]) -> None:
    """Loads the tensors of a module's files; extra state that is no tensor stays as it is."""
    build(module, state)
    own = module.state_dict()
    extra = {name: value for name, value in own.items() if not isinstance(value, Tensor)}
    module.load_state_dict({**state, **extra}, strict=module.strict_loading)


def set_extra_state(module: nn.Module, state: Mapping[str, object]) -> None:
    """Sets the extra state of a module and of its parts to that of a state dict."""
    for name in module.state_dict():
        owner, _, last = name.rpartition(".")
        if last == "_extra_state" and name in state:
            module.get_submodule(owner).set_extra_state(state[name])


def filled(state: Mapping[str, Tensor], module: LightningModule, name: str) -> StateDict:
    """The same, with the module's own tensors where it is not strict and the state lacks them."""
    build(module, state)
    return {**tensors_of(module), **fit_module(state, module, name)}


def put(module: LightningModule, state: Mapping[str, Tensor]) -> None:
    """Loads tensors that fit the module; what is not among them stays as it is."""
    module.load_state_dict(state, strict=False)
