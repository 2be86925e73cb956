"""A conditional variational autoencoder in JAX that draws the digit you ask for.

Nothing is imported here, so that `import cvae_jax` costs nothing: take what you need from
its modules, for example `from cvae_jax import data, models, training`. The map of the
package is docs/architecture.md.
"""

__version__ = "0.2.0"
