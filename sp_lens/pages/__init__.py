"""Pages in HTML: reports on pruning runs, and pages of single neurons."""
