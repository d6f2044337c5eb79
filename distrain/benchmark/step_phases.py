"""Names the parts of a step: the phases of the loop, `prepare`, and `wait`, in their order, as a person reads them.

`wait` is for the slower ranks, before the gradients are reduced: it is no part of the transfer.
"""

PARTS = {
    "data": "data wait",
    "prepare": "prepare",
    "forward": "forward",
    "backward": "backward",
    "wait": "wait for ranks",
    "reduce": "reduction",
    "update": "optimizer",
    "other": "other",
}
