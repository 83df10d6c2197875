"""Video-sentence pairs that anyone can generate: a bot solves BabyAI missions. The extra ``demo`` is needed."""

from .rollouts import BabyAI, Rollouts, load, render, split_by_sentence

__all__ = ["BabyAI", "Rollouts", "load", "render", "split_by_sentence"]
