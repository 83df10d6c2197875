"""The harness: inputs, timing, parity, memory, records and pages, and the registry of the cases."""
