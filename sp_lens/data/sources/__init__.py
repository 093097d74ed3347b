"""Where data comes from: named corpora and image datasets, offline text and images, files and tables."""
