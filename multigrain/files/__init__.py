"""Files: the one way to write one, whole or not at all, and to read it back without acting on what it says.

A file is written next to its place under a temporary name, synced and renamed, so that a reader finds the file from
before or the new one, after a power cut too. A digest tells if a file is the one that was written; a lock keeps a
folder to one writer. Only tensors and plain values are read, by `load_tensors` and `read_json`.
"""

from .locks import lock
from .read import check_digest, check_file, digest, parse_json, read_json, read_text
from .tensors import PlainUnpickler, load_tensors, refuse, save_tensors
from .write import (
    Location,
    append_lines,
    duplicate,
    open_folder,
    remove_partial,
    rounded,
    write_bytes,
    write_json,
    write_lines,
    write_text,
    write_together,
    writing,
)

__all__ = [
    "Location",
    "PlainUnpickler",
    "append_lines",
    "check_digest",
    "check_file",
    "digest",
    "duplicate",
    "load_tensors",
    "lock",
    "open_folder",
    "parse_json",
    "read_json",
    "read_text",
    "refuse",
    "remove_partial",
    "rounded",
    "save_tensors",
    "write_bytes",
    "write_json",
    "write_lines",
    "write_text",
    "write_together",
    "writing",
]
