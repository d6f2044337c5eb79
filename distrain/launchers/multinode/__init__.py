"""Several nodes that train one run without a cluster manager."""
