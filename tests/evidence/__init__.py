"""Scripts that make the figures of data/results/: each prints and writes a page, and says how it was made."""
