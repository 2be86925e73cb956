"""Training: the step, the scan over steps, and the loop over epochs."""
