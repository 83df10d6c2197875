"""Tokens and Features: what encoders hand over, and the one accessor through which scorers read it.

A grain of an item is a set of tokens: features [B, L, D] with a mask [B, L], True = a real token. A coarse
feature (a sentence, a whole video) is a grain of one token, [B, D] or [B, 1, D].
"""

from .features import Features
from .tokens import EPS, Tokens, check_finite, unit_vectors

__all__ = ["EPS", "Features", "Tokens", "check_finite", "unit_vectors"]
