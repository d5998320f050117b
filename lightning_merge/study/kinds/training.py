"""Training a start, or an ingredient from it."""

import time

from lightning.pytorch import seed_everything

from lightning_merge.checkpoint import digest, tensors_of
from lightning_merge.measure.measurement import measure
from lightning_merge.modules.module_state import load
from lightning_merge.recipe.build import Plain, build_module, trainer_of
from lightning_merge.recipe.fitting import fit_resumably
from lightning_merge.study.same_data import data_of
from lightning_merge.study.store import Store
from lightning_merge.study.work import Session, Work, work_kinds


@work_kinds.register("start")
@work_kinds.register("ingredient")
def train(work: Work, store: Store, session: Session) -> None:
    """Trains an ingredient, which is tested, or the network that all of them start from."""
    settings = work.settings
    seed_everything(settings["seed"], verbose=False)
    module = build_module(settings["model"])
    if work.needs:
        load(module, store.state(work.needs[0]))
    start = time.perf_counter()
    data = data_of(settings["data"], store)
    trainer = trainer_of(settings["trainer"], session.progress)
    fitting = trainer()
    fitted = fit_resumably(module, data, fitting, store.training(work.key))
    seconds = fitted.seconds + time.perf_counter() - start
    result: Plain = {}
    if work.kind == "ingredient":
        named = work.name, "ingredient", seconds, work.seed, fitted.examples
        result["row"] = measure(module, data, trainer(), *named).stored()
    content: Plain = fitting._checkpoint_connector.dump_checkpoint(weights_only=True)
    state = content["state_dict"]
    content["state_dict"] = state | {name: one.cpu() for name, one in tensors_of(state).items()}
    result |= {
        "split_hash": getattr(data, "split_hash", None),
        "digest": digest(tensors_of(state)),
        "settings": settings,
    }
    store.put(work.key, result, content)
