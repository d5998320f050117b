"""Rules of recurrent layers: the gates of one unit move together."""

import numpy as np

from lightning_merge.trace import algebra
from lightning_merge.trace.layout import Layout, plain
from lightning_merge.trace.rules.elementwise import along
from lightning_merge.trace.rules.rule_table import Call, Unsupported, rule

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*_GATES)
def recurrent(call: Call) -> list[Layout]:
    """Units of every layer and direction, each with its gates; time stays in place."""
    if call.get("params") is None or call.get("hx") is None:
        raise Unsupported  # packed sequences
    x, biases = call["input"], call["has_biases"]
    directions, layers = 1 + int(call["bidirectional"]), call["num_layers"]
    each = 4 if biases else 2
    given = list(call["params"])
    if len(given) != each * directions * layers or any(h.labels for h in _tensors(call["hx"])):
        raise Unsupported  # projections, or a first state that the network has computed
    at_time = 1 if call["batch_first"] else 0
    time = x.dims[at_time]
    x = algebra.freeze(call.units, x, time, "a recurrent layer runs along it")
    last: list[Layout] = []
    for _ in range(layers):
        outputs = []
        for _ in range(directions):
            weights, given = given[:each], given[each:]
            outputs.append(_cell(call, x, weights, _GATES[call.operator]))
        # The last states, which lie behind one another whatever comes first above.
        last += [y.with_dims(((), y.dims[1 - at_time], y.dims[2])) for y in outputs]
        x = algebra.concatenate(call.units, outputs, 2, call.reason)
    states = algebra.concatenate(call.units, last, 0, call.reason)
    # An LSTM that torch 2.11 exports has one dimension too many there.
    lost = "the last state of a recurrent layer"
    return [x, *(states if s == states.shape else plain(s, because=lost) for s in call.shapes[1:])]


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
