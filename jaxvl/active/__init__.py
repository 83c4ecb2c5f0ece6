"""Active learning: which images are worth annotating? Rounds of train, score, select and label, outside jit."""
