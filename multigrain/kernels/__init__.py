"""Backends that compute the scores of a grain; `table` chooses among them."""
