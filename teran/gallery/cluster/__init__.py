"""Galleries in a Qdrant cluster: for more images than one machine holds, and several servers."""
