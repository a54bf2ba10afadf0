"""What training reads: clips as latents and captions as rows of text, encoded ahead by a run of the phase `latents`."""
