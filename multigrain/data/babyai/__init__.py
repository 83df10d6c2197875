"""Video-sentence pairs that anyone can generate: a bot solves BabyAI missions. Needs the extra ``demo``."""

from .rollouts import BabyAI, Rollouts, load, render, split_by_sentence

__all__ = ["BabyAI", "Rollouts", "load", "render", "split_by_sentence"]
