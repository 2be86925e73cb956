"""The list of measures. It imports no JAX, so that the command line can name them at once."""

MEASURES = {  # name: a module of this folder and its function from a `Subject` to a `Finding`
    "elbo": ("density", "measure_elbo"),
    "likelihood": ("density", "measure_likelihood"),
    "accuracy": ("samples", "measure_accuracy"),
    "classification": ("samples", "measure_classification"),
    "distances": ("samples", "measure_distances"),
    "reconstructions": ("samples", "measure_reconstructions"),
    "latent": ("density", "measure_latent"),
}
"""A new measure is a line here. The table keeps this order."""
