"""The cases: operations with their shapes, rivals and targets, and the studies of trained models."""
