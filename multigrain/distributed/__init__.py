"""The ranks of torch.distributed: features gathered with their gradient, and plain values that ranks exchange."""

from .collectives import Group, world
from .gather import Gathered, gather, single_rank, wire_bytes
from .tensors import all_to_all

__all__ = ["Gathered", "Group", "all_to_all", "gather", "single_rank", "wire_bytes", "world"]
