"""Experiments on reward training: what initialisation, size, placement and loss of an insertion buy."""
