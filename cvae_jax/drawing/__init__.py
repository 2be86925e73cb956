"""Drawing: from latents to pictures."""
