"""Several nodes that train one run without a cluster manager.

The launchers meet over plain sockets, not over `torch.distributed.TCPStore`: that loads torch, which takes a launcher
1.3 s and 480 MiB more before it can say that a node is missing. And a store keeps values: lost connections and silent
nodes would still have to be watched for here.
"""
