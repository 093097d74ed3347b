"""Read corpora of text and images, assign documents to dataset splits, tokenize, and form batches."""
