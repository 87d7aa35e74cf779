"""Galleries in a directory of this process: the durable store and the copy that is searched."""
