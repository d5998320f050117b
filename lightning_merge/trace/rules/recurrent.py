"""Rules of recurrent layers: the gates of one unit move together."""

import numpy as np

from lightning_merge.trace import algebra
from lightning_merge.trace.layout import Layout, plain
from lightning_merge.trace.rules.elementwise import along
from lightning_merge.trace.rules.rule_table import Call, Unsupported, rule


@rule("lstm")
def lstm(call: Call) -> list[Layout]:
    """Units of every layer and direction, each with its four gates; time stays in place."""
    return _recurrent(call, 4)


@rule("gru")
def gru(call: Call) -> list[Layout]:
    """As an LSTM, with three gates."""
    return _recurrent(call, 3)


def _recurrent(call: Call, gates: int) -> list[Layout]:
    if call.get("params") is None or call.get("hx") is None:
        raise Unsupported  # packed sequences
    x, biases = call["input"], call["has_biases"]
    directions, layers = 1 + int(call["bidirectional"]), call["num_layers"]
    each = 4 if biases else 2
    given = list(call["params"])
    if len(given) != each * directions * layers or any(h.labels for h in _tensors(call["hx"])):
        raise Unsupported  # projections, or a first state that the network has computed
    time = x.dims[1 if call["batch_first"] else 0]
    x = algebra.freeze(call.units, x, time, "a recurrent layer runs along it")
    for _ in range(layers):
        outputs = []
        for _ in range(directions):
            weights, given = given[:each], given[each:]
            outputs.append(_cell(call, x, weights, gates))
        x = algebra.concatenate(call.units, outputs, 2, call.reason)
    # Hardly any network reads the last states: they have no units.
    rest = [
        plain(shape, because="the last state of a recurrent layer") for shape in call.shapes[1:]
    ]
    return [x, *rest]


def _tensors(value: object) -> list[Layout]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, Layout)]


def _cell(call: Call, x: Layout, weights: list[Layout], gates: int) -> Layout:
    """The hidden states of one layer in one direction, `(batch, time, units)` or time first."""
    units, (own, back, *biases) = call.units, weights
    for weight in (own, back):
        call.role(weight, 1, "reads")
        call.role(weight, 0, "makes")
    for bias in biases:
        call.role(bias, 0, "makes")
    size = own.shape[0] // gates
    parts = []
    for gate in range(gates):
        index = np.arange(gate * size, (gate + 1) * size)
        mine = algebra.take(units, own, 0, index)
        parts.append(algebra.contract(units, [x, mine], ["abi", "oi"], "abo", call.reason))
        for bias in biases:
            parts[-1] = along(call, parts[-1], 2, [algebra.take(units, bias, 0, index)])
    state = algebra.elementwise(units, parts, call.reason)
    for gate in range(gates):
        mine = algebra.take(units, back, 0, np.arange(gate * size, (gate + 1) * size))
        again = algebra.contract(units, [state, mine], ["abi", "oi"], "abo", call.reason)
        state = algebra.elementwise(units, [state, again], call.reason)
    return state
