"""Training of one run on several nodes without a cluster manager.

The launchers connect over plain sockets, not over `torch.distributed.TCPStore`: that would import torch, which costs a
launcher 1.3 s and 480 MiB before it can report that a node is missing. A store also only keeps values: lost connections
and silent nodes would still have to be detected here.
"""
