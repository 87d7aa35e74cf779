"""Scenes: a small self-made world of drawn images and English captions, to train and show TERAN."""
