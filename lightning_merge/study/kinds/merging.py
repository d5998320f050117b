"""Running one recipe, or a sweep, on the ingredients of a repetition."""

from lightning_merge.checkpoint import StateDict
from lightning_merge.measure.outcome import run_recipe
from lightning_merge.measure.sweep import sweep_of
from lightning_merge.modules.module_state import filled
from lightning_merge.recipe.build import build_module, build_recipe, trainer_of
from lightning_merge.recipe.context import Context
from lightning_merge.study.kept_alignments import KeptAlignments
from lightning_merge.study.store import Store
from lightning_merge.study.work import Session, Work, work_kinds


@work_kinds.register("merge")
def merge_ingredients(work: Work, store: Store, session: Session) -> None:
    """Runs a recipe, and tests what it makes."""
    context = _context(work, store, session)
    outcome = run_recipe(build_recipe(work.settings["recipe"]), context)
    result = {
        "row": outcome.measurement.stored(),
        "choices": outcome.choices,
        "ingredients": context.digests,
        "split_hash": getattr(context.data, "split_hash", None),
        "settings": work.settings,
    }
    store.put(work.key, result, outcome.content)


@work_kinds.register("sweep")
def sweep_ingredients(work: Work, store: Store, session: Session) -> None:
    """Measures along a path, over a triangle, over factors of the weights."""
    context = _context(work, store, session)
    settings = work.settings
    sweep = sweep_of(settings["sweep"])
    keys = {(name, size): key for name, size, key in settings.get("merges", [])}
    found = sweep.measure(context, settings["of"], lambda name, size: store.state(keys[name, size]))
    result = {"seed": work.seed, sweep.key: found, "ingredients": context.digests}
    store.put(work.key, {**result, "settings": settings})


def _context(work: Work, store: Store, session: Session) -> Context:
    settings, names = work.settings, work.settings["names"]
    start, needs = (work.needs[:1], work.needs[1:]) if settings["started"] else ((), work.needs)
    module = build_module(settings["model"])

    def state(key: str) -> StateDict:
        return filled(session.state(store, key), module, key)

    return Context(
        module=module,
        states=[state(key) for key in needs[: len(names)]],
        names=names,
        data=session.data(settings["data"], store),
        trainer=trainer_of(settings["trainer"], session.progress),
        seed=work.seed,
        progress=session.progress,
        statistics_examples=settings["statistics_examples"],
        pretrained=state(start[0]) if start else None,
        given_digests=[store.result(key)["digest"] for key in needs[: len(names)]],
        cache=session.cache,
        keep=_keep(work, store, session),
    )


def _keep(work: Work, store: Store, session: Session) -> KeptAlignments | None:
    if session.claims is None:
        return None
    determine = ("model", "data", "trainer", "statistics_examples")
    settings = {name: work.settings[name] for name in determine}
    return KeptAlignments(store, session.claims, work.seed, settings)
