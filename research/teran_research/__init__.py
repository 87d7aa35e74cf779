"""What the paper did with data sets, once more: train, evaluate, explain."""
