"""Galleries: images (or sentences) stored durably and searched exactly by region-word alignment."""
