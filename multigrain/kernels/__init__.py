"""Backends that compute the scores of a grain; `dispatch` chooses among them, and nobody else imports one."""
