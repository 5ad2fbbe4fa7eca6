"""Training: the tool adapter, the corpus, both drafters."""
