"""The gate between a user's model and every bound: the graph is the model, its tensors are live, results are bounds."""
