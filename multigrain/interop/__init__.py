"""Scores and criteria of this package inside the training loops of others, one module for each partner.

    clip4clip                 its loop's tensors as Features
    open_clip                 a loss with the call signature of its ClipLoss
    pytorch_metric_learning   scores as a distance, its losses as criteria, criteria as its losses   [metric]
    sentence_transformers     a similarity_fct for its MultiVectorEncoder, and PyLate's score_metric
    transformers              outputs of its encoders as Features                                    [hf]
"""
