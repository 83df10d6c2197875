"""What a run leaves behind: why a pair has its score, and one self-contained HTML page."""
