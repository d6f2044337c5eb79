"""Owns the parts of a step: the phases that the loop names, and `prepare`, in their order, in a person's words."""

PARTS = {
    "data": "data wait",
    "prepare": "prepare",
    "forward": "forward",
    "backward": "backward",
    "reduce": "reduction",
    "update": "optimizer",
    "other": "other",
}
