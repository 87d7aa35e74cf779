"""How the best items are found: bounds, scans, kernels, and the copy in memory they read."""
