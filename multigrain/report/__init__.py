"""Report of a run: why a pair has its score, and one self-contained HTML page."""
