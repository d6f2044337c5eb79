"""Names the phases of a step in their order, as shown in a report: those of the loop, `prepare`, and `wait`.

`wait` is the time that a rank waits for slower ones before the reduction: it is not part of the transfer.
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
