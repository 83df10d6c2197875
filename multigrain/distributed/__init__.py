"""The ranks of torch.distributed: features gathered with their gradient, and what ranks tell each other."""

from .gather import Gathered, Group, alone, deal, gather, wire_bytes, world

__all__ = ["Gathered", "Group", "alone", "deal", "gather", "wire_bytes", "world"]
