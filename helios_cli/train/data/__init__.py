"""The data of training: clips as latents and captions as rows of text, encoded ahead by the phase `latents`."""
