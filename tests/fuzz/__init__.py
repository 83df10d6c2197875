"""Damaged files, many of them: `python -m tests.fuzz --videos 5000 --files 5000`; a few of each run in test_fuzz.py."""
